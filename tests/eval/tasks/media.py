"""Images and clips of the miniature benchmarks in tests/data/benchmarks: shapes on plain backgrounds.

The annotations next to them are written by hand in the official formats; this draws the shapes that they ask
about: `python -m tests.eval.tasks.media tests/data/benchmarks`. Its output is committed, so that
`owl2 eval run ... --data tests/data/benchmarks` needs nothing but the checkout.
"""

import sys
from pathlib import Path

import av
from PIL import Image, ImageDraw

Shape = tuple[str, str, str]
"""Form, its colour, the ground's."""

IMAGES: dict[str, Shape] = {
    "coco/val2014/COCO_val2014_000000262148.jpg": ("circle", "red", "white"),
    "coco/val2014/COCO_val2014_000000391895.jpg": ("square", "blue", "gray"),
    "coco/val2014/COCO_val2014_000000000042.jpg": ("triangle", "green", "white"),
    "coco/test2015/COCO_test2015_000000000001.jpg": ("triangle", "purple", "white"),
    "coco/test2015/COCO_test2015_000000000016.jpg": ("square", "orange", "black"),
    "flickr30k/flickr30k-images/1007129816.jpg": ("circle", "yellow", "black"),
    "flickr30k/flickr30k-images/1009434119.jpg": ("square", "white", "red"),
    "gqa/images/n250821.jpg": ("circle", "blue", "white"),
    "gqa/images/2370799.jpg": ("square", "green", "gray"),
    "vizwiz/val/VizWiz_val_00000000.jpg": ("circle", "black", "black"),
    "vizwiz/val/VizWiz_val_00000001.jpg": ("square", "navy", "blue"),
    "vizwiz/val/VizWiz_val_00000002.jpg": ("circle", "red", "brown"),
    "vizwiz/test/VizWiz_test_00000000.jpg": ("square", "green", "green"),
    "vizwiz/test/VizWiz_test_00000001.jpg": ("triangle", "red", "white"),
    "textvqa/train_images/003a8ae2ef43b901.jpg": ("OPEN 24h", "black", "white"),
    "textvqa/train_images/0054c91397f2fe05.jpg": ("circle", "blue", "white"),
    "scienceqa/images/test/4/image.png": ("square", "red", "white"),
    "scienceqa/images/test/5/image.png": ("square", "green", "white"),
    "scienceqa/images/test/11/image.png": ("circle", "blue", "white"),
}
CLIPS: dict[str, Shape] = {
    "msrvtt_qa/videos/video7010.mp4": ("circle", "red", "white"),
    "msrvtt_qa/videos/video7011.mp4": ("square", "blue", "white"),
    "msvd_qa/videos/-4wsuPCjDBc_5_15.avi": ("square", "green", "white"),
    "msvd_qa/videos/vid1452.avi": ("triangle", "red", "gray"),
    "tgif_qa/gifs/tumblr_no73q2fm0I1uuf348o1_250.gif": ("circle", "red", "white"),
    "tgif_qa/gifs/tumblr_nedt1ck9181ttuja3o1_250.gif": ("square", "black", "white"),
}
SIZE = (96, 64)
NUM_FRAMES = 12


def draw(shape: Shape, shift: int = 0) -> Image.Image:
    """The shape in the middle, or `shift` pixels to the right of it."""
    form, colour, ground = shape
    image = Image.new("RGB", SIZE, ground)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 28 + shift, 12, 68 + shift, 52
    if form == "circle":
        pen.ellipse((left, top, right, bottom), fill=colour)
    elif form == "square":
        pen.rectangle((left, top, right, bottom), fill=colour)
    elif form == "triangle":
        pen.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    else:
        pen.text((8, 22), form, fill=colour, font_size=18)
    return image


def write_gif(file: Path, frames: list[Image.Image]) -> None:
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=100, loop=0)


def write_video(file: Path, frames: list[Image.Image]) -> None:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_media(root: Path) -> None:
    for name, shape in IMAGES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(shape).save(file)
    for name, shape in CLIPS.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        frames = [draw(shape, shift=4 * number - 24) for number in range(NUM_FRAMES)]
        (write_gif if file.suffix == ".gif" else write_video)(file, frames)


if __name__ == "__main__":
    write_media(Path(sys.argv[1]))
