"""The shape of a UNet from scratch, as settings say it or weights show it; no heavy library is needed for it."""

from dataclasses import dataclass, field


@dataclass
class SmallUNetConfig:
    """A UNet from scratch.

    Attributes:
        block_out_channels: Channels of each level, the finest first; each level halves the size.
        layers_per_block: Number of residual blocks in each level.
        attention_levels: Levels that have self-attention. A number counts them from the coarsest on; a list names
            them, 0 being the finest.
        channels_per_head: Channels of each attention head; null takes 32, or less where a level has fewer.
        norm_groups: Groups of the normalisations; null takes up to 32, as many as divide the channels.
        scale_shift_norm: Whether the time scales and shifts what is normalised, instead of being added to it (ADM,
            Dhariwal and Nichol, 2021).
        resblock_updown: Whether residual blocks change the size, instead of convolutions (ADM).
        dropout: Share of the values that each residual block drops in training.
    """

    block_out_channels: list[int] = field(metadata={"limits": (1, 8192)})
    layers_per_block: int = field(default=2, metadata={"limits": (1, 100)})
    attention_levels: int | list[int] = field(default=1, metadata={"limits": (0, 100)})
    channels_per_head: int | None = field(default=None, metadata={"limits": (1, 8192)})
    norm_groups: int | None = field(default=None, metadata={"limits": (1, 8192)})
    scale_shift_norm: bool = False
    resblock_updown: bool = False
    dropout: float = field(default=0.0, metadata={"limits": (0.0, 0.99)})

    def has_attention(self) -> list[bool]:
        """Of each level, the finest first, whether it has self-attention."""
        levels, named = len(self.block_out_channels), self.attention_levels
        if isinstance(named, int):
            named = range(levels - named, levels)
        return [level in named for level in range(levels)]

    def check(self) -> None:
        """Refuse what no UNet can be built of.

        Raises:
            ValueError: a level with attention does not exist, or heads or groups do not divide the channels.
        """
        levels, named = len(self.block_out_channels), self.attention_levels
        highest = named if isinstance(named, int) else max(named, default=-1) + 1
        if highest > levels:
            raise ValueError(f"unet.attention_levels is {named}, but block_out_channels has {levels} levels")
        with_heads = [c for c, attends in zip(self.block_out_channels, self.has_attention(), strict=True) if attends]
        if with_heads:
            with_heads.append(self.block_out_channels[-1])  # the middle has attention too
        for name, number, channels in (
            ("channels_per_head", self.channels_per_head, with_heads),
            ("norm_groups", self.norm_groups, self.block_out_channels),
        ):
            wrong = [c for c in channels if number and c % number]
            if wrong:
                raise ValueError(f"unet.{name} is {number}, which does not divide the {wrong[0]} channels of a level")
