"""Fixed 2-D sine-cosine positions (Dosovitskiy et al., 2021, appendix D.4; laid out as in MAE's published weights)."""
import torch


def sincos_1d(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """(M,) positions -> (M, dim): sines of dim / 2 frequencies 10000^(-2i / dim), then their cosines."""
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.outer(positions.double(), omega)  # (M, dim / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(dim: int, grid: tuple[int, int], prefix_tokens: int = 1) -> torch.Tensor:
    """Positions of an (h, w) grid of patches in row order: (1, prefix_tokens + h * w, dim) float32.

    The first half of a vector encodes the column, the second half the row; prefix tokens (the class token) get zeros.
    Raises ValueError where `dim` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {dim}: change --embed_dim or "
                         "--decoder_embed_dim")
    h, w = grid
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    table = torch.cat([sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)], dim=1)
    return torch.cat([torch.zeros(prefix_tokens, dim), table.float()]).unsqueeze(0)
