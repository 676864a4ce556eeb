"""Many photos into a folder of shards that survives a kill, by one process or by many, and what explains a batch."""

from guided_backprop.jobs.explainer import Explainer
from guided_backprop.jobs.job import Job, Ran, ShardWriter, Written
from guided_backprop.jobs.part import Part
from guided_backprop.jobs.reading import Maps, read
from guided_backprop.jobs.status import Status, status

__all__ = ["Explainer", "Job", "Maps", "Part", "Ran", "ShardWriter", "Status", "Written", "read", "status"]
