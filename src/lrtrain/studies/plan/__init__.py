"""What a configuration will take, before anything is allocated: parameters, FLOPs, memory and time.

Nothing is imported here: the table of the SCT paper needs no torch.
"""
