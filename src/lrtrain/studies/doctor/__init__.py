"""What will go wrong before it does: a machine, a configuration and the places that it names, looked at in seconds.

Each check is a function of what it probes, so that a test can make it fail. Nothing is imported here.
"""
