"""The demo's presets: the model, its data, and the length of each stage.

`tiny` is what `make demo` runs: it trains a very small model in 20 minutes on two cores. `small` starts
from a pretrained language model and takes hours. `smoke` shows in minutes that every part works; its model
learns nothing useful. All run the same code, the same stages and the same rule tables.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from owl2.demo.assets import DEMO_ASSETS, LANGUAGE_ASSET
from owl2.demo.world.corpus import SMOKE, WorldSizes
from owl2.model.config import AbstractorConfig, DecoderConfig
from owl2.train.config import DataConfig, OptimConfig, SourceConfig, TrainConfig
from owl2.train.rules import Rule


@dataclass(frozen=True, kw_only=True)
class StageSize:
    """How long a stage is."""

    steps: int
    batch: int
    lr: float
    accumulation: int = 1


@dataclass(frozen=True, kw_only=True)
class DemoPreset:
    """One size of the demo."""

    world: WorldSizes
    decoder: DecoderConfig | None
    """The stand-in for LLaMA-2, trained from scratch; None takes SmolLM2-135M-Instruct as it is."""
    abstractor: AbstractorConfig
    vision_layers: int
    """Layers of DINOv2 ViT-S/14 that are kept, from the input."""
    frozen_vision_layers: int
    """Lowest layers that stay frozen. The paper trains all, which takes too long on a CPU."""
    image_sizes: tuple[int, int]
    """Pixels in stage 1 and in stage 2."""
    language: StageSize | None
    """The decoder's own pre-training; None if it comes pretrained."""
    warm: StageSize
    pretrain: StageSize
    instruct: StageSize


ABSTRACTOR = AbstractorConfig(
    num_learnable_queries=8,
    hidden_size=384,
    num_hidden_layers=1,
    num_attention_heads=6,
    intermediate_size=1056,
)
DECODER = DecoderConfig(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=352,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)

PRESETS: dict[str, DemoPreset] = {
    "tiny": DemoPreset(
        world=WorldSizes(),
        decoder=DECODER,
        abstractor=ABSTRACTOR,
        vision_layers=6,
        frozen_vision_layers=5,
        image_sizes=(84, 98),
        language=StageSize(steps=800, batch=16, lr=2e-3),
        warm=StageSize(steps=700, batch=32, lr=2e-3),
        pretrain=StageSize(steps=250, batch=32, lr=1e-3),
        instruct=StageSize(steps=600, batch=24, lr=1e-3),
    ),
    "small": DemoPreset(
        world=WorldSizes(),
        decoder=None,
        abstractor=ABSTRACTOR,
        vision_layers=8,
        frozen_vision_layers=5,
        image_sizes=(84, 112),
        language=None,
        warm=StageSize(steps=400, batch=32, lr=2e-3),
        pretrain=StageSize(steps=250, batch=16, lr=1e-3),
        instruct=StageSize(steps=200, batch=8, lr=3e-4),
    ),
    "smoke": DemoPreset(
        world=SMOKE,
        decoder=DECODER,
        abstractor=ABSTRACTOR,
        vision_layers=3,
        frozen_vision_layers=1,
        image_sizes=(56, 84),
        language=StageSize(steps=30, batch=32, lr=2e-3),
        warm=StageSize(steps=5, batch=16, lr=1e-3),
        pretrain=StageSize(steps=10, batch=16, lr=1e-3),
        instruct=StageSize(steps=10, batch=16, lr=1e-3),
    ),
}


FINAL = 1e-2
"""Learning rate at the end, as a share of the peak: Table 15 has 1e-2 and 5e-3."""
VISION_LAYER_DECAY = 0.9


def packages(preset: DemoPreset) -> tuple[str, ...]:
    """The assets that a preset needs."""
    return DEMO_ASSETS if preset.decoder else (*DEMO_ASSETS, LANGUAGE_ASSET)


def language_stage(preset: DemoPreset, run: Path, base: Path, world: Path) -> TrainConfig:
    """Pre-train the decoder on text alone: the stand-in for LLaMA-2's own pre-training."""
    assert preset.language is not None
    rules = [
        Rule(match="model.vision_model.*", frozen=True),
        Rule(match="model.visual_abstractor.*", frozen=True),
        Rule(match="*.multiway.1.*", frozen=True),
        Rule(match="*embed_tokens*", weight_decay=0.0),
        Rule(match="*"),
    ]
    sources = [SourceConfig(name="talk", path=world / "lm/train.jsonl")]
    stage = _stage(preset.language, run, base, sources, rules, image_size=None)
    return dataclasses.replace(stage, data=dataclasses.replace(stage.data, targets="all"))


def warm_stage(preset: DemoPreset, run: Path, base: Path, world: Path) -> TrainConfig:
    """Warm up the abstractor on the words of captions, without the decoder; not in the paper."""
    rules = [Rule(match="model.visual_abstractor.*"), Rule(match="*", frozen=True)]
    sources = [SourceConfig(name="captions", path=world / "pretrain")]
    stage = _stage(preset.warm, run, base, sources, rules, image_size=preset.image_sizes[0])
    return dataclasses.replace(stage, objective="bag_of_words")


def pretrain_stage(preset: DemoPreset, run: Path, base: Path, world: Path) -> TrainConfig:
    """Stage 1: vision encoder, abstractor and the visual weights of MAM; the language model is frozen."""
    rules = [
        *_vision_rules(preset, lr=0.1),
        Rule(match="model.visual_abstractor.*"),
        Rule(match="*.multiway.1.*"),
        Rule(match="*", frozen=True),
    ]
    sources = [SourceConfig(name="captions", path=world / "pretrain")]
    return _stage(
        preset.pretrain, run, base, sources, rules, image_size=preset.image_sizes[0], copy_text_to_vision=True
    )


def instruct_stage(preset: DemoPreset, run: Path, base: Path, world: Path) -> TrainConfig:
    """Stage 2: all parameters, images and text together, at the higher resolution."""
    rules = [*_vision_rules(preset, lr=0.1), Rule(match="*", weight_decay=0.0)]
    sources = [
        SourceConfig(name="scenes", path=world / "instruct/train.jsonl", weight=0.7, turns="apart"),
        SourceConfig(name="dialogue", path=world / "instruct/train.jsonl", weight=0.1),
        SourceConfig(name="easyvqa", path=world / "instruct/easyvqa.jsonl", weight=0.04),
        SourceConfig(name="text", path=world / "instruct/text.jsonl", weight=0.16),
    ]
    return _stage(preset.instruct, run, base, sources, rules, image_size=preset.image_sizes[1])


def _vision_rules(preset: DemoPreset, lr: float) -> list[Rule]:
    frozen = [
        Rule(match=f"model.vision_model.encoder.layers.{i}.*", frozen=True)
        for i in range(preset.frozen_vision_layers)
    ]
    if frozen:
        frozen.insert(0, Rule(match="model.vision_model.embeddings.*", frozen=True))
    return [*frozen, Rule(match="model.vision_model.*", lr=lr, layer_decay=VISION_LAYER_DECAY)]


def _stage(
    size: StageSize,
    run: Path,
    base: Path,
    sources: list[SourceConfig],
    rules: list[Rule],
    *,
    image_size: int | None,
    copy_text_to_vision: bool = False,
) -> TrainConfig:
    return TrainConfig(
        run=run,
        model=base,
        data=DataConfig(sources=sources, max_tokens=512, num_workers=1),  # 5-10 % of a step, in parallel
        rules=rules,
        steps=size.steps,
        optim=OptimConfig(lr=size.lr, min_lr=size.lr * FINAL, warmup_steps=max(1, size.steps // 20)),
        global_batch_size=size.batch * size.accumulation,
        micro_batch_size=size.batch,
        accumulation=size.accumulation,
        image_size=image_size,
        copy_text_to_vision=copy_text_to_vision,
        save_every=max(50, size.steps // 8),
        keep_last=1,
    )
