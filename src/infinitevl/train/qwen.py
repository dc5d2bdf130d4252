"""A teacher of this package as transformers' own Qwen2.5-VL, which `convert` and everyone else can read."""

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration

SHARED = (
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "tie_word_embeddings",
)  # fmt: skip
TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "bos_token_id",
    "eos_token_id", "pad_token_id",
)  # fmt: skip


def as_qwen(teacher: InfiniteVLForConditionalGeneration) -> Qwen2_5_VLForConditionalGeneration:
    """The same weights in transformers' own class, on the CPU in float32, which gives the same logits at the same
    positions. ValueError for a model that is no Qwen2.5-VL.
    """
    model = Qwen2_5_VLForConditionalGeneration(qwen_config(teacher.config))
    model.load_state_dict({name: tensor.float().cpu() for name, tensor in teacher.state_dict().items()})
    return model.eval()


def qwen_config(teacher: InfiniteVLConfig) -> Qwen2_5_VLConfig:
    """The same sizes in transformers' own class. ValueError for those of no Qwen2.5-VL."""
    text, vision = teacher.text_config.to_dict(), teacher.vision_config.to_dict()
    if set(text["layer_types"]) != {"full_attention"}:
        raise ValueError("only a model of full attention layers is a Qwen2.5-VL")
    if text["head_dim"] * text["num_attention_heads"] != text["hidden_size"]:
        raise ValueError("the heads of a Qwen2.5-VL share its hidden size")
    return Qwen2_5_VLConfig(
        text_config={name: text[name] for name in TEXT},
        vision_config={name: value for name, value in vision.items() if name != "model_type"},
        **{name: getattr(teacher, name) for name in SHARED},
    )
