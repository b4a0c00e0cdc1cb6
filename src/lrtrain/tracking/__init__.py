"""Tracking a run: a durable local spool first, MLflow second.

`logger.MLflowLogger` is the Lightning logger and writes every record to the spool (`spool.py`, `metrics.jsonl` in the
run directory); a background thread (`sender.py`) brings what is new to MLflow (`delivery.py`), and so does
`lrtrain sync` for whatever still waits when the run is over. Training never waits for a server.
"""
