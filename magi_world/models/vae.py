"""The ViT VAE: video to latents and back (golden README section 7; spec section 1).

Shape suffixes: N batch, C channels, T frames, H rows, W columns in pixels;
t, h, w the latent grid; S = 1 + t*h*w tokens (a class token first), E embedding width, Z latent
channels. Pixels are in [-1, 1]. Parameter names are MAGI-1's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.config import VAEConfig
from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices, attention

_IN_ATTENTION_EPS = 1e-5  # added to the standard deviation, not to the variance
_LOGVAR_RANGE = (-30.0, 20.0)


def _standardise(x_ND: Tensor) -> Tensor:
    """Zero mean and unit population deviation over the last axis, eps beside the deviation."""
    mean = x_ND.mean(-1, keepdim=True)
    deviation = x_ND.std(-1, keepdim=True, correction=0)
    return (x_ND - mean) / (deviation + _IN_ATTENTION_EPS)


class Attention(nn.Module):
    """Full self-attention over the tokens of each clip."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.ln_in_attn = config.ln_in_attn
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x_NSE: Tensor) -> Tensor:
        N, S, E = x_NSE.shape
        qkv = self.qkv(x_NSE).view(N * S, 3, self.num_heads, E // self.num_heads)
        if self.ln_in_attn:
            qkv = _standardise(qkv)
        q, k, v = qkv.unbind(1)  # [N*S, heads, E/heads]
        out, _ = attention(q, k, v, AttnSlices.repeated(N, S, S))
        result: Tensor = self.proj(out.reshape(N, S, E))
        return result


class Mlp(nn.Module):
    """Two linears around an exact GELU."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, config.embed_dim)

    def forward(self, x_NSE: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x_NSE)))
        return result


class Block(nn.Module):
    """Attention and MLP, each added to the residual stream.

    With ``ln_in_attn`` there is no norm before the attention: q, k and v are normalised inside.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if config.ln_in_attn else nn.LayerNorm(config.embed_dim)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = Mlp(config)

    def forward(self, x_NSE: Tensor) -> Tensor:
        x_NSE = x_NSE + self.attn(self.norm1(x_NSE))
        result: Tensor = x_NSE + self.mlp(self.norm2(x_NSE))
        return result


class _Tokens(nn.Module):
    """What encoder and decoder share: class token, position table, blocks, norm."""

    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        t, h, w = config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + t * h * w, config.embed_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """Position table for a latent grid, resized trilinearly when it is not the native one."""
        if grid == self.config.grid:
            return self.pos_embed
        table = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, self.config.grid)
        table = F.interpolate(table, size=grid, mode="trilinear", align_corners=False)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def transform(self, x_NSE: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Run the blocks over grid tokens [N, t*h*w, E] and return them normalised."""
        cls = self.cls_token.expand(x_NSE.shape[0], -1, -1)
        x_NSE = torch.cat([cls, x_NSE], dim=1) + self.positions(grid)
        for block in self.blocks:
            x_NSE = block(x_NSE)
        normed: Tensor = self.norm(x_NSE)
        return normed


class PatchEmbed(nn.Module):
    """Non-overlapping video patches to tokens."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_chans, config.embed_dim, patch, stride=patch)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        # kernel = stride, so the convolution is one matrix product over patches: several times
        # faster on CPU than its general form, the weights stay those of the Conv3d
        pT, pH, pW = self.proj.kernel_size
        N, C, T, H, W = x_NCTHW.shape
        patches = x_NCTHW.view(N, C, T // pT, pT, H // pH, pH, W // pW, pW)
        patches = patches.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [N, t, h, w, C*pT*pH*pW]
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # [N, t, h, w, E]


class Encoder(_Tokens):
    """Video [N, 3, T, H, W] to moments [N, 2Z, t, h, w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config)
        self.last_layer = nn.Linear(config.embed_dim, 2 * config.z_chans)

    def forward(self, x_NCTHW: Tensor) -> Tensor:
        tokens = self.patch_embed(x_NCTHW)  # [N, t, h, w, E]
        grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
        x_NSE = self.transform(tokens.flatten(1, 3), grid)
        moments: Tensor = self.last_layer(x_NSE)[:, 1:].transpose(1, 2).unflatten(2, grid)
        return moments


class Decoder(_Tokens):
    """Latents [N, Z, t, h, w] to video [N, 3, T, H, W]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config)
        patch_volume = config.patch_length * config.patch_size**2
        self.proj_in = nn.Linear(config.z_chans, config.embed_dim)
        self.pixel_channels = 4 if config.use_final_proj else config.embed_dim // patch_volume
        if config.use_final_proj:
            self.final_proj = nn.Linear(config.embed_dim, 4 * patch_volume)
            self.final_norm = nn.LayerNorm(4 * patch_volume)
        self.last_layer = nn.Conv3d(self.pixel_channels, 3, 3, padding=1)

    def forward(self, z_NZthw: Tensor) -> Tensor:
        config, (t, h, w) = self.config, z_NZthw.shape[2:]
        x_NSE = self.transform(self.proj_in(z_NZthw.flatten(2).transpose(1, 2)), (t, h, w))[:, 1:]
        if config.use_final_proj:
            x_NSE = self.final_norm(self.final_proj(x_NSE))
        pT, pH, c = config.patch_length, config.patch_size, self.pixel_channels
        pixels = x_NSE.view(-1, t, h, w, pT, pH, pH, c)
        pixels = pixels.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [N, c, t, pT, h, pH, w, pW]
        pixels = pixels.reshape(-1, c, t * pT, h * pH, w * pH)
        video: Tensor = self.last_layer(pixels)
        return video


class VitVAE(nn.Module):
    """Encoder and decoder; the deterministic latent is the mean of the posterior."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode_moments(self, video: Tensor) -> Tensor:
        """Encode pixels to the moments of the posterior.

        Args:
            video: `[N, 3, T, H, W]` in [-1, 1]. A single frame is repeated to fill one patch.

        Returns:
            `[N, 2Z, t, h, w]`, means first, then log-variances (not clamped).

        Raises:
            ConfigError: a size that is not a whole number of patches.
        """
        self.check_pixels(video)
        if video.shape[2] == 1:
            video = video.expand(-1, -1, self.config.patch_length, -1, -1)
        moments: Tensor = self.encoder(video)
        return moments

    def check_pixels(self, video: Tensor) -> None:
        """Refuse pixels `[N, 3, T, H, W]` that are not whole patches; one frame counts as whole.

        Raises:
            ConfigError: the size and what it should be a multiple of.
        """
        pT, pH = self.config.patch_length, self.config.patch_size
        T, H, W = video.shape[2:]
        if (T % pT and T != 1) or H % pH or W % pH:
            raise ConfigError(f"video of {T}x{H}x{W} is not a multiple of the patch {pT}x{pH}x{pH}")

    @staticmethod
    def posterior(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split moments `[N, 2Z, …]` into mean, clamped log-variance and deviation."""
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(*_LOGVAR_RANGE)
        return mean, logvar, (0.5 * logvar).exp()

    def encode(self, video: Tensor) -> Tensor:
        """Encode pixels `[N, 3, T, H, W]` in [-1, 1] to the posterior mean `[N, Z, t, h, w]`."""
        return self.encode_moments(video).chunk(2, dim=1)[0]

    def decode(self, z: Tensor, single_frame: bool) -> Tensor:
        """Decode unscaled latents `[N, Z, t, h, w]` to pixels `[N, 3, 4t, 8h, 8w]` near [-1, 1].

        Args:
            z: latents, not multiplied by the scale factor.
            single_frame: True returns only the first frame of one latent frame (how the
                published code treats an image); rollouts pass False.

        Raises:
            ConfigError: ``single_frame`` with more than one latent frame.
        """
        if single_frame and z.shape[2] != 1:
            raise ConfigError(f"single_frame needs one latent frame, got {z.shape[2]}")
        video: Tensor = self.decoder(z)
        return video[:, :, :1] if single_frame else video
