"""What every loss shares: checks, priors as buffers, float32 inside, and a row-block evaluation that saves memory.

A loss is written as `row_losses(x, targets)`, plain differentiable torch on float32 logits x (N, C) -> (N,).
"""
import torch
from torch import nn

from .prior import check_counts, check_tau, check_test_prior, require_images

# A batch is cut into at most MAX_BLOCKS blocks of rows, none smaller than MIN_BLOCK_ELEMENTS logits.
# With 24 blocks a loss may hold 24 float32 temporaries within twice the bytes of bfloat16 logits;
# a small batch stays whole, because there the launches cost more than the memory.
MAX_BLOCKS = 24
MIN_BLOCK_ELEMENTS = 2**16


def expect(values, targets, weights=None):
    """Expectation of a label-dependent quantity over the target distribution: sum_k t_k w_k values_k.

    values: (N, C); targets: (N,) labels or (N, C) weights; weights: w (C,), all one by default. -> (N,). A label is the
    one-hot row it stands for: the gather is that sum without its zeros.
    """
    if targets.ndim == 1:
        picked = values.gather(1, targets[:, None]).squeeze(1)
        return picked if weights is None else weights[targets] * picked
    targets = targets.to(values.dtype)
    # As a matrix product the weighted sum needs no pass of its own over (N, C).
    return (targets * values).sum(1) if weights is None else (targets * values) @ weights


def add_on_targets(grad, values, targets):
    """grad + t * values in place, the gradient's side of `expect`: grad (N, C), values broadcast to it. -> grad."""
    if targets.ndim == 1:
        labels = targets[:, None]
        return grad.scatter_add_(1, labels, values.expand_as(grad).gather(1, labels))
    return grad.addcmul_(targets.to(grad.dtype), values)


def compute_dtype(logits):
    """float64 stays (for checks of gradients), every other floating type is computed in float32."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _spans(rows, columns):
    """Row intervals of the blocks: at most MAX_BLOCKS of them, however large the batch."""
    step = max(-(-rows // MAX_BLOCKS), -(-MIN_BLOCK_ELEMENTS // columns))
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _lift(block, shift):
    """Block of logits (n, C) and bias (C,) or None -> float32 (or float64) sum, detached, in one buffer."""
    block = block.detach()
    dtype = compute_dtype(block)
    if shift is None:
        return block.to(dtype)
    # A CPU sum of mixed types first copies its bfloat16 side to float32: casting and adding in place spares the copy.
    if block.dtype != dtype and block.device.type == "cpu":
        return block.to(dtype).add_(shift)
    return torch.add(block, shift)


class _RowBlocks(torch.autograd.Function):
    """Row losses block by block, forward without a graph, backward by computing each block again.

    Saved for backward: the logits as they came, nothing in float32. The bias is added while the block is lifted to
    float32, so a balanced loss does no pass over the logits more than its plain one on an accelerator.
    """

    @staticmethod
    def forward(ctx, row_losses, row_gradients, shift, logits, targets, features):
        ctx.row_losses, ctx.row_gradients = row_losses, row_gradients
        ctx.save_for_backward(shift, logits, targets, features)
        rows = torch.empty(len(logits), dtype=compute_dtype(logits), device=logits.device)
        for start, stop in _spans(*logits.shape):
            more = () if features is None else (features[start:stop].to(rows.dtype),)
            rows[start:stop] = row_losses(_lift(logits[start:stop], shift), targets[start:stop], *more)
        return rows

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows):
        shift, logits, targets, features = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        grad_features = torch.empty_like(features) if ctx.needs_input_grad[5] else None
        with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
            for start, stop in _spans(*logits.shape):
                if ctx.row_gradients is not None:
                    grad = ctx.row_gradients(_lift(logits[start:stop], shift), targets[start:stop])
                    grad_logits[start:stop] = grad.mul_(grad_rows[start:stop, None])
                    continue
                inputs = [_lift(logits[start:stop], shift).requires_grad_()]
                more = []
                if features is not None:
                    more = [features[start:stop].detach().to(grad_rows.dtype)]
                if grad_features is not None:
                    inputs.append(more[0].requires_grad_())
                rows = ctx.row_losses(inputs[0], targets[start:stop], *more)
                grads = torch.autograd.grad(rows, inputs, grad_rows[start:stop], allow_unused=True)
                grad_logits[start:stop] = grads[0]
                if grad_features is not None:
                    # unused while a warm-up trains without the features
                    grad_features[start:stop] = 0 if grads[1] is None else grads[1]
        return None, None, None, grad_logits, None, grad_features


def row_blocks(row_losses, logits, targets, shift=None, features=None, row_gradients=None):
    """Apply row_losses(x, targets[, features]) -> (n,) to blocks of rows of x = logits + shift, in float32.

    logits: (N, C) of any floating type; shift: (C,) or None; targets and features (or None) have N rows, cut alike;
    row_gradients(x, targets) -> (n, C) in a fresh tensor, or None to differentiate row_losses.
    -> (N,), differentiable once in logits and features.
    """
    return _RowBlocks.apply(row_losses, row_gradients, shift, logits, targets, features)


class Loss(nn.Module):
    """Base of all losses: sum over classes, mean over the batch, natural logarithm, float32 inside.

    class_counts: training images of each class (C,); tau: strength of the prior; test_prior: see `check_test_prior`;
    class_names: C names for error messages. Subclasses set the class attributes below and write `row_losses`.
    """

    activation = "softmax"  # which scores evaluation and prediction use
    needs_features = False  # whether forward wants the penultimate features
    cosine_head = False  # whether the logits must come from a cosine classifier
    uses_prior = False  # whether tau and test_prior change this loss
    needs_images = False  # whether a class without training images is an error
    smooths_labels = False  # whether it smooths labels itself, so that --smoothing beside it would smooth twice
    scheduled_epoch = None  # epoch at which a schedule inside the loss begins, None: it has none (see `set_epoch`)
    logit_scale = 1.0  # what evaluation multiplies the logits with before the activation
    row_gradients = None  # closed form of d row_losses / d x (N, C), where it is far cheaper than differentiating

    def __init__(self, class_counts, tau=1.0, test_prior="uniform", class_names=None, name=None):
        super().__init__()
        self.name = name or type(self).__name__
        self.class_names = class_names
        self.counts = check_counts(class_counts)  # plain attribute: read on the host only
        self.num_classes = len(self.counts)
        self.tau = check_tau(tau)
        self.test_prior = check_test_prior(test_prior, self.num_classes)
        self._exact = {}
        if self.uses_prior or self.needs_images:
            require_images(self.counts, self.name, class_names)

    def add_constant(self, key, values):
        """Register float64 values (C,) as a float32 buffer; checkpoints do not hold it, it follows from the counts."""
        self._exact[key] = values
        self.register_buffer(key, values.float(), persistent=False)

    def constant(self, key, dtype):
        """The constant in the type asked for: the buffer, or the exact values where float64 logits are checked."""
        buffer = getattr(self, key)
        return buffer if buffer.dtype == dtype else self._exact[key].to(buffer.device, dtype)

    def prior(self):
        """pi_k = n_k / N, float64 (C,)."""
        return self.counts / self.counts.sum()

    def log_test_ratio(self):
        """log(C pi^t_k): zero where the test prior is uniform or none. float64 (C,)."""
        if self.test_prior is None:
            return torch.zeros_like(self.counts)
        return (self.test_prior * self.num_classes).log()

    def set_epoch(self, epoch):
        """Tell the loss which epoch (from 0) starts now; only losses with a schedule listen."""

    def initial_bias(self):
        """Best constant logits under the training distribution, float32 (C,), for a head bias that starts there.

        A softmax loss is blind to a constant on all logits; it is chosen so that a uniform test prior and none agree.
        ValueError where a class has no training image.
        """
        require_images(self.counts, self.name, self.class_names, "start the head's bias at zero")
        return self.constant_logits().float()

    def constant_logits(self):
        """float64 (C,) behind `initial_bias`: here the minimiser of plain cross-entropy, log pi_k."""
        return self.prior().log()

    def shift(self, dtype):
        """Bias (C,) that training adds to the logits, or None."""
        return self.constant("bias", dtype) if self.uses_prior else None

    def row_losses(self, x, targets):
        """x: float32 logits with the bias added (N, C); targets: (N,) or (N, C). -> loss of each row (N,)."""
        raise NotImplementedError

    def forward(self, logits, targets, features=None):
        """logits: (N, C); targets: labels (N,) or distributions (N, C); features: (N, D) where `needs_features`.

        -> scalar float32 (float64 for float64 logits). ValueError for shapes or types that do not fit.
        """
        targets = self._check(logits, targets, features)
        with torch.autocast(logits.device.type, enabled=False):
            return self.total(logits, targets, features if self.needs_features else None)

    def total(self, logits, targets, features):
        """The whole loss of a batch; a loss that is no mean over samples writes its own."""
        shift = self.shift(compute_dtype(logits))
        return row_blocks(self.row_losses, logits, targets, shift, features, self.row_gradients).mean()

    def _check(self, logits, targets, features):
        """Raise ValueError on what does not fit, by shapes and types alone: values stay on the device."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes or not logits.is_floating_point():
            raise ValueError(
                f"logits must be floating point of shape (N, {self.num_classes}), got {logits.dtype} "
                f"{tuple(logits.shape)}: the head and class_counts must agree on the number of classes"
            )
        if len(logits) == 0:
            raise ValueError("the batch is empty, its mean loss is undefined: skip empty batches")
        soft = targets.is_floating_point()
        expected = tuple(logits.shape) if soft else (len(logits),)
        if tuple(targets.shape) != expected or targets.dtype == torch.bool:
            raise ValueError(
                f"targets must be integer labels of shape ({len(logits)},) or floating-point distributions of shape "
                f"{tuple(logits.shape)}, got {targets.dtype} {tuple(targets.shape)}"
            )
        if self.needs_features and (features is None or features.ndim != 2 or len(features) != len(logits)):
            found = "none" if features is None else tuple(features.shape)
            raise ValueError(
                f"loss {self.name!r} needs the features of the penultimate layer, ({len(logits)}, D), got {found}: "
                "call loss(logits, targets, features=features)"
            )
        return targets if soft else targets.long()
