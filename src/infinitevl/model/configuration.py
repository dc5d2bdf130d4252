"""Configuration: the published flat form and nested forms, and the pattern of layers."""

from typing import Any, ClassVar

from transformers import PreTrainedConfig

LAYER_TYPES = ("sliding_attention", "linear_attention", "full_attention")
LINEAR_RULES = ("gated_delta", "gated", "plain")
ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta")


class InfiniteVLVisionConfig(PreTrainedConfig):
    """Qwen2.5-VL's vision encoder. The defaults are the 4B model's."""

    model_type = "infinite_vl_vision"
    base_config_key = "vision_config"

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 2048
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    fullatt_block_indexes: list[int] | tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int | float = 2
    hidden_act: str = "silu"
    initializer_range: float = 0.02


class InfiniteVLTextConfig(PreTrainedConfig):
    """The language model. The defaults are the 4B model's.

    layer_types: one of LAYER_TYPES per layer; by default layer i is sliding_attention when i % 4 == 0, else
        linear_attention.
    sliding_window: tokens that a query of a sliding_attention layer sees, itself included.
    attention_sinks: first tokens of the stream that sliding_attention layers keep for ever.
    num_linear_heads, linear_head_dim, expand_v, conv_size: heads of the Gated DeltaNet layers, the width K of
        their keys, V / K, and the width of their convolution. By default the attention layers' heads.
    linear_rule: how their memory S takes in a token: "gated_delta", the rule of Gated DeltaNet; "gated", that without
        the correction of what S holds at the key (gated linear attention); "plain", that without decay and with
        beta = 1 (linear attention). For comparisons: every published model is gated_delta.
    norm_eps: eps of the Gated DeltaNet layers' output norm (rms_norm_eps is all others').
    """

    model_type = "infinite_vl_text"
    base_config_key = "text_config"

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 11008
    num_hidden_layers: int = 36
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 2
    head_dim: int | None = None
    num_linear_heads: int | None = None
    num_linear_key_value_heads: int | None = None
    linear_head_dim: int | None = None
    expand_v: int | float = 2
    conv_size: int = 4
    linear_rule: str = "gated_delta"
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    norm_eps: float = 1e-5
    sliding_window: int = 8192
    attention_sinks: int = 0
    layer_types: list[str] | None = None
    rope_parameters: dict | None = None
    max_position_embeddings: int = 128000
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.rope_parameters = _rope_parameters({**kwargs, "rope_parameters": self.rope_parameters})
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_linear_heads = self.num_linear_heads or self.num_attention_heads
        self.num_linear_key_value_heads = self.num_linear_key_value_heads or self.num_linear_heads
        self.linear_head_dim = self.linear_head_dim or self.head_dim
        if self.layer_types is None:
            kinds = ("sliding_attention", *["linear_attention"] * 3)
            self.layer_types = [kinds[i % 4] for i in range(self.num_hidden_layers)]
        super().__post_init__(**{key: value for key, value in kwargs.items() if key not in ROPE_KEYS})
        self._check()

    @property
    def linear_value_dim(self) -> int:
        """Width V of a Gated DeltaNet head's values."""
        return int((self.linear_head_dim or 0) * self.expand_v)

    def _check(self) -> None:
        layer_types = self.layer_types or []
        unknown = sorted(set(layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"unknown layer type {unknown[0]!r}: choose from {', '.join(LAYER_TYPES)}")
        if self.linear_rule not in LINEAR_RULES:
            raise ValueError(f"unknown linear_rule {self.linear_rule!r}: choose from {', '.join(LINEAR_RULES)}")
        if len(layer_types) != self.num_hidden_layers:
            raise ValueError(f"{len(layer_types)} layer_types for {self.num_hidden_layers} layers")
        if self.num_linear_key_value_heads != self.num_linear_heads:
            raise ValueError("num_linear_key_value_heads must equal num_linear_heads")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act must be 'silu', not {self.hidden_act!r}")
        if self.sliding_window < 1 or self.attention_sinks < 0:
            raise ValueError("sliding_window must be at least 1 and attention_sinks at least 0")
        section, half = (self.rope_parameters or {})["mrope_section"], (self.head_dim or 0) // 2
        if sum(section) != half:
            raise ValueError(f"mrope_section {section} must add up to half of head_dim, {half}")


def _rope_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """One form for `rope_parameters` and the older `rope_scaling` with `rope_theta`."""
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.pop("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope type {kind!r} is not supported, only 'default'")
    return {
        "rope_type": "default",
        "rope_theta": float(rope.get("rope_theta", given.get("rope_theta") or 1e6)),
        "mrope_section": list(rope.get("mrope_section", (16, 24, 24))),
    }


class InfiniteVLConfig(PreTrainedConfig):
    """A whole model. Reads nested configurations and the published one, with its text fields at the top level."""

    model_type = "infinite_vl"
    sub_configs: ClassVar = {  # pyright: ignore
        "text_config": InfiniteVLTextConfig,
        "vision_config": InfiniteVLVisionConfig,
    }
    keys_to_ignore_at_inference: ClassVar = ["past_key_values"]

    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int | None = 151643
    eos_token_id: int | list[int] | None = 151645
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        for published in ("auto_map", "attn_implementation"):  # remote code and kernels of the authors' file
            kwargs.pop(published, None)
        if self.text_config is None:
            known = (*InfiniteVLTextConfig.__dataclass_fields__, *ROPE_KEYS)
            own = (*PreTrainedConfig.__dataclass_fields__, *type(self).__dataclass_fields__)
            self.text_config = {key: kwargs.pop(key) for key in known if key in kwargs and key not in own}
        self.text_config = _sub_config(InfiniteVLTextConfig, self.text_config)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self.text_config, name, getattr(self, name))
        self.vision_config = _sub_config(InfiniteVLVisionConfig, self.vision_config)
        super().__post_init__(**kwargs)


def _sub_config(kind: type[PreTrainedConfig], given: PreTrainedConfig | dict[str, Any] | None):
    if isinstance(given, PreTrainedConfig):
        return given
    return kind(**{key: value for key, value in (given or {}).items() if key != "model_type"})
