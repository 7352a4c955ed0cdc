"""A reward from how well the picture fits a text, as a model of both says.

    from transformers import CLIPModel, CLIPProcessor

    likeness = TextImageSimilarity(
        "a ball close to the left paddle",
        CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder),
    )
    env = CallableReward(env, likeness)

Which model is the user's choice; nothing is downloaded here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from magi_world.envs.spaces import Frames
from magi_world.errors import ConfigError

_METHODS = ("get_text_features", "get_image_features")


class TextImageSimilarity:
    """Cosine similarity, -1 to 1, of the last frame of a chunk and a text; see `CallableReward`.

    Args:
        text: what the picture should show. With `against` the similarity to each of those texts is
            taken off on average, so that what all pictures of a world have in common cancels.
        model: a model of pictures and texts with the methods `get_text_features` and
            `get_image_features`, as `CLIPModel` and `SiglipModel` of transformers have them.
        processor: what makes the model's input of texts and pictures, called with `text=` or
            `images=`, `return_tensors="pt"` and, beside texts, `padding=` (SigLIP: `max_length=`
            too).
        against: other texts.

    Raises:
        ConfigError: no text, or a model without those methods.
    """

    def __init__(
        self, text: str, model: Any, processor: Any, *, against: Sequence[str] = ()
    ) -> None:
        texts = [text, *against]
        if isinstance(against, str) or not all(isinstance(t, str) and t for t in texts):
            raise ConfigError(f"text {text!r}, against {against!r}: texts are needed")
        missing = [name for name in _METHODS if not callable(getattr(model, name, None))]
        if missing:
            raise ConfigError(f"the model {type(model).__name__} has no {', '.join(missing)}")
        self.text = text
        self._model = model.eval()
        self._processor = processor
        with torch.inference_mode():
            inputs = processor(text=texts, return_tensors="pt", **_padding(model))
            texts_TD = _unit(model.get_text_features(**self._moved(inputs)))
        others = texts_TD[1:].mean(0) if len(texts) > 1 else torch.zeros_like(texts_TD[0])
        self._direction_D = texts_TD[0] - others

    @torch.inference_mode()
    def __call__(self, frames: Frames, prompt: str) -> float:
        """Similarity of the last of the frames uint8 `[F, H, W, 3]`; the prompt does not matter."""
        inputs = self._processor(images=[frames[-1]], return_tensors="pt")
        image_D = _unit(self._model.get_image_features(**self._moved(inputs)))[0]
        return float(image_D @ self._direction_D)

    def _moved(self, inputs: Any) -> dict[str, Any]:
        device = next(self._model.parameters()).device
        return {name: tensor.to(device) for name, tensor in inputs.items()}


def _padding(model: Any) -> dict[str, Any]:
    """How texts are brought to one length.

    SigLIP reads a text at its last position and has no mask: it knows texts padded to the full
    length only, and else the embedding of one would depend on the texts beside it.
    """
    config: Any = getattr(model, "config", None)
    if not str(getattr(config, "model_type", "")).startswith("siglip"):
        return {"padding": True}
    return {"padding": "max_length", "max_length": config.text_config.max_position_embeddings}


def _unit(features: Any) -> Tensor:
    """Embeddings of length 1, `[n, D]`; newer versions of transformers wrap them."""
    embedded = getattr(features, "pooler_output", features)
    unit: Tensor = embedded / embedded.norm(dim=-1, keepdim=True)
    return unit
