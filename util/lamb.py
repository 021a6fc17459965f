"""LAMB for the optimiser step of `util.steps`: timm's, which skips a step by a flag on the device."""
import timm.optim
import torch


class Lamb(timm.optim.Lamb):
    """timm's LAMB (You et al., ICLR 2020) without its own clipping of the gradient, which --clip_grad does.

    As of torch's fused optimisers, a step is skipped where the tensor `found_inf` is not 0: weights and moments stay. The
    host does not know, so its count of steps, which only the correction of the moments' start reads, goes on.
    """

    found_inf = None
    _step_supports_amp_scaling = True  # GradScaler then sets `found_inf` for the step, and takes it away again

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float]):
        super().__init__(groups, lr=lr, betas=betas, weight_decay=0.0, max_grad_norm=None)

    @torch.no_grad()
    def step(self, closure=None):
        """One step, as torch's optimisers take it."""
        if self.found_inf is None:
            return super().step(closure)
        kept = [tensor for group in self.param_groups for p in group["params"] if p.grad is not None
                for tensor in (p, *self._moments(p))]
        before = [tensor.clone() for tensor in kept]
        result = super().step(closure)
        for tensor, old in zip(kept, before, strict=True):
            tensor.copy_(torch.where(self.found_inf != 0, old, tensor))
        return result

    def _moments(self, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both moments of a parameter, which the first step would make."""
        state = self.state[p]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state["exp_avg"], state["exp_avg_sq"]
