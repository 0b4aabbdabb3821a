"""owl2 as a model of lmms-eval (0.7.3), which reads images and videos.

`lmms-eval --model owl2 --model_args pretrained=CHECKPOINT --tasks ...`: the harness finds it by the entry
point `owl2` in the group `lmms_eval.models`. It is a chat model there: a task hands over turns in which
images have their places, and they are rendered with the checkpoint's own template. The harness's tasks for
such models only generate, so there are no likelihoods here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from owl2.api import Owl2
from owl2.eval.adapters.answering import answer_all, load_once, read_batch_size, read_settings
from owl2.eval.engines.local import OwlEngine
from owl2.eval.formats.frames import NUM_FRAMES
from owl2.processor import Message, TemplateError

try:
    from lmms_eval.api.model import lmms
except ModuleNotFoundError as error:
    if error.name != "lmms_eval":
        raise
    lmms = object


class OwlLmms(lmms):
    """A checkpoint as a model of the harness. One process."""

    is_simple = False

    def __init__(
        self,
        pretrained: str | Path | Owl2,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int | str = 1,
    ):
        """Load a checkpoint (folder or hub id), or take a loaded model.

        Raises:
            ModuleNotFoundError: the harness is not installed.
            ValueError: a batch size that is no number.
            Owl2Error: see `owl2.load`.
        """
        if lmms is object:
            raise ModuleNotFoundError("OwlLmms needs the harness: see docs/evaluation.md", name="lmms_eval")
        super().__init__()
        self.batch_size = read_batch_size(batch_size)
        self.owl = load_once(pretrained, device, dtype)
        self._engine = OwlEngine(self.owl)
        self.device = self.owl.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request; images of one batch at a time are in memory.

        Raises:
            GenerationError: generation arguments that cannot be met; names the task.
            TemplateError: a turn or a part that the model does not have; names the task and the document.
            ImageError, VideoError, ContextError: a document that cannot be encoded.
        """
        answers: list[str] = []
        for begin in range(0, len(requests), self.batch_size):
            rows = []
            for request in requests[begin : begin + self.batch_size]:
                _, doc_to_messages, asked, doc_id, task, split = request.args
                turns = doc_to_messages(self.task_dict[task][split][doc_id])
                messages = read_turns(turns, f"task {task}, document {doc_id}")
                encoding = self.owl.processor.encode(messages, generation_prompt=True)
                rows.append((encoding, read_settings(asked, self.owl.generation_config, task)))
            answers += answer_all(self._engine, rows, self.batch_size)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "lmms-eval ranks no choices with chat models: use `owl2 eval run`'s _ppl tasks"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported by this adapter")


def read_turns(turns: Sequence[Mapping[str, Any]], where: str) -> list[Message]:
    """Translate the harness's turns; a video becomes its frames.

    Raises:
        TemplateError: a sound; names `where`.
        VideoError: a video that cannot be decoded.
    """
    messages: list[Message] = []
    for turn in turns:
        content = turn["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        messages.append(
            {"role": turn["role"], "content": [p for part in parts for p in read_part(part, where)]}
        )
    return messages


def read_part(part: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Translate one part of a turn; a video gives several."""
    match part["type"]:
        case "text":
            return [{"type": "text", "text": part["text"]}]
        case "image":
            return [{"type": "image", "image": part["url"]}]
        case "video" if isinstance(part["url"], str):
            from owl2.processor.video import sample_frames

            frames = sample_frames(Path(part["url"]), NUM_FRAMES)
            return [{"type": "image", "image": frame} for frame in frames]
    raise TemplateError(f"{where}: owl2 reads text, images and video files, not {part!r:.80}")


def manifest() -> Any:
    """Return what the entry point `lmms_eval.models` hands to the harness."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="owl2", chat_class_path=f"{__name__}.{OwlLmms.__name__}")
