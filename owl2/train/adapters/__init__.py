"""Low-rank adapters: LoRA (`lora.py`) and frozen matrices in four bits, QLoRA (`qlora.py`).

Start reading with `target_layers` and `add_adapters` in `lora.py`; `load_adapter` is for use after training.
For another kind of adapter copy `add_adapters`, `save_adapter` and `merge_adapters`.
"""
