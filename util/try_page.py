"""A page in the browser to try a classifier: a picture in, its five most probable classes and where the model looks out.

    make try CKPT=runs/bft/last.pth
    python -m util.try_page runs/bft/last.pth

Made by gradio, which nothing else needs. The page is served to this machine alone, and nothing leaves it.
"""
import os
import socket
import sys

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image

from datasets.decode import UnreadableImage, read_image, read_pixels
from datasets.loading import LOADERS
from datasets.transforms import eval_transform
from util.args import Parser, run_command
from util.attention import attention_rollout
from util.run import say
from util.setup import choose_device
from util.trained import Trained, load_classifier_model, own_pool

INSTALL = f"{sys.executable} -m pip install 'gradio>=6'"
TOPK = 5
SIDE = 384  # pixels at least of the shorter side of the picture that comes out: small ones would be hard to see
HIGHEST = 2.0  # share of a uniform look from which on a patch is as bright as can be


def get_args_parser() -> Parser:
    """Flags of the command."""
    parser = Parser("a page in the browser to try a classifier")
    parser.add_argument("checkpoint", nargs="?", metavar="CKPT_OR_DIR", help="last.pth of main_finetune.py, or a folder that "
                        "python -m util.export --format timm made of it")
    parser.add_argument("--port", type=int, metavar="N", help="port of the page (the first free one from 7860)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve; 0.0.0.0 lets other machines see the page")
    parser.add_argument("--device", default="auto", help="auto (cuda where there is one), cpu, cuda, ...")
    return parser


def check_address(host: str, port: int | None) -> None:
    """ValueError where no page can be served there."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port must lie between 1 and 65535, not {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as a server that follows another one at once
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"cannot serve the page on --host {host}{f' --port {port}' * bool(port)} ({error}): give another "
                         "--port, or as --host an address of this machine") from None


def load_gradio():
    """The library; ValueError with the command that installs it where it is missing."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f"the page is made by gradio, which is not there ({error}): {INSTALL}") from None
    if int(gradio.__version__.split(".")[0]) < 6:
        raise ValueError(f"the page is made by gradio 6 or newer, and {gradio.__version__} is installed: {INSTALL}")
    return gradio


def answer(trained: Trained, path: str) -> tuple[dict[str, float], Image.Image]:
    """The TOPK most probable classes of a picture file with their probabilities, as predict.py gives them, and the picture as
    the model sees it with its attention rollout on it. UnreadableImage where it is no picture."""
    loader, channels = trained.settings.get("loader", LOADERS[0]), trained.record.channels
    image = (read_pixels if loader == "fast" else read_image)(path, channels)
    pixels = eval_transform(trained.size, trained.crop_pct)(image)[None]
    batch = trained.normalize(pixels.to(trained.normalize.factor.device))
    logits, maps = attention_rollout(trained.model, batch, own_pool(trained))
    scores = logits[0].float() * trained.criterion.logit_scale
    probabilities = scores.sigmoid() if trained.criterion.activation == "sigmoid" else scores.softmax(dim=0)
    values, classes = probabilities.topk(min(TOPK, len(trained.class_names)))
    top = {trained.class_names[k]: value for k, value in zip(classes.tolist(), values.tolist(), strict=True)}
    return top, overlay(pixels[0], maps[0].cpu().numpy())


def overlay(pixels: torch.Tensor, attention: np.ndarray) -> Image.Image:
    """A picture (C, H, W) uint8 in grey below its map (h, w) of mean 1, in colours from 0 to HIGHEST, patch by patch."""
    height, width = pixels.shape[1:]
    scale = max(1, -(-SIDE // min(height, width)))
    size = (width * scale, height * scale)
    gray = Image.fromarray(pixels.float().mean(dim=0).byte().numpy()).resize(size, Image.Resampling.BICUBIC)
    colours = mpl.colormaps["inferno"](np.clip(attention / HIGHEST, 0, 1))[..., :3]
    coloured = Image.fromarray((255 * colours).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return Image.blend(gray.convert("RGB"), coloured, 0.6)


def build_page(gradio, trained: Trained):
    """The page: a picture above or to the left of what is said about it."""
    kind = trained.criterion.activation
    each = ", each class for itself, so that their sum is not 1" * (kind == "sigmoid")
    epochs = f"{trained.epochs} epoch{'s' * (trained.epochs != 1)}"
    pool = "mean of the patch tokens" if own_pool(trained) == "mean" else "class token"

    def look(path: str | None):
        if path is None:
            return None, None
        try:
            return answer(trained, path)
        except UnreadableImage as error:
            raise gradio.Error(f"This is no picture that can be read ({error.reason}): give another one") from None

    with gradio.Blocks(title="LiVT: try a model", analytics_enabled=False) as page:
        gradio.Markdown(f"# What does the model see?\n{len(trained.class_names)} classes, images of {trained.size[0]} x "
                        f"{trained.size[1]}, trained with {trained.settings['loss']} for {epochs}. "
                        f"Probabilities by {kind}{each}.")
        with gradio.Row():
            with gradio.Column():
                # The file as it is: the model reads it as it reads all others, turned as EXIF says.
                picture = gradio.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="picture",
                                       height=SIDE, elem_id="picture")
            with gradio.Column():
                classes = gradio.Label(num_top_classes=TOPK, label="the most probable classes", elem_id="classes")
                attention = gradio.Image(type="pil", format="png", interactive=False, label="attention",
                                         buttons=["download", "fullscreen"], elem_id="attention")
                gradio.Markdown(f"Attention rollout to the {pool}: the brighter a patch, the more of it is read, brightest at "
                                f"{HIGHEST:g} times its share. It is the same for every class: a hint, not an explanation.")
        picture.change(look, picture, [classes, attention])
    return page


def main(args, wait: bool = True):
    """Serve the page until Ctrl-C; without `wait` return (page, address) at once."""
    if args.checkpoint is None:
        raise ValueError("no model to try: make try CKPT=runs/bft/last.pth, or python -m util.try_page runs/bft/last.pth")
    check_address(args.host, args.port)
    gradio = load_gradio()
    trained = load_classifier_model(args.checkpoint, choose_device(args.device))
    page = build_page(gradio, trained)
    try:
        address = page.launch(server_name=args.host, server_port=args.port, share=False, quiet=True, ssr_mode=False,
                              footer_links=[], prevent_thread_lock=True)[1]
    except OSError as error:
        raise ValueError(f"cannot serve the page on {args.host} ({error}): give another --port or --host") from None
    say(f"{trained.name}: open {address} in a browser; Ctrl-C ends it")
    if wait:
        page.block_thread()
    return page, address


if __name__ == "__main__":
    run_command(get_args_parser(), main)
