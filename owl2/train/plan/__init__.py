"""Plans of stages before a GPU is rented: memory, communication and days (`owl2 plan`).

Start with `plan.py`, which searches for a plan that fits. `inputs.py` has the micro-batches that are planned
for, `tracer.py` runs one without memory, and `memory.py` counts its bytes. For a new GPU add a row to `GPUS`.
"""
