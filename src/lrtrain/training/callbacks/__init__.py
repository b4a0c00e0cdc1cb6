"""Lightning callbacks: constraints, telemetry, self-guidance, non-finite gradients, throughput and progress."""
