"""Rendering of one scene with Pillow, supersampled, at any size."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from tools.pocket.places import draw_place
from tools.pocket.things import FACE_ANCHORS, Part, face_parts, thing_parts
from tools.pocket.world import COLOURS, TRAIT_COLOURS, Individual, Pose, Scene

OVERSAMPLING = 4
OUTLINE = (74, 70, 82)
ROLES: dict[str, tuple[int, int, int]] = {
    "dark": (62, 60, 70),
    "metal": (168, 174, 184),
    "glass": (176, 220, 240),
    "beak": (246, 150, 36),
    "lamp": (255, 236, 150),
    "white": (252, 252, 252),
    "pupil": (24, 22, 28),
    "inside": (92, 66, 56),
    "pink": (240, 150, 160),
}
#: Roles with a darker shade of the individual's colour.
SHADES = {"shade": 0.76, "edge": 0.5}
Colour = tuple[int, int, int]


def _transform(points: np.ndarray, *, pose: Pose, side: int) -> list[tuple[float, float]]:
    """Map thing coordinates (-1..1, y down) to pixels."""
    turn = math.radians(pose.turn)
    x = points[:, 0] * (-1 if pose.flip else 1)
    y = points[:, 1]
    scale = pose.scale * side
    px = pose.x * side + scale * (x * math.cos(turn) - y * math.sin(turn))
    py = pose.y * side + scale * (x * math.sin(turn) + y * math.cos(turn))
    return list(zip(px.tolist(), py.tolist(), strict=True))


def _mask(parts: Iterable[Part], *, pose: Pose, side: int, outline: int = 0) -> Image.Image:
    """The union of the parts as a mask, dilated by `outline` pixels."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    for part in parts:
        corners = _transform(part.points, pose=pose, side=side)
        draw.polygon(corners, fill=255)
        if outline:
            draw.line([*corners, *corners[:2]], fill=255, width=2 * outline, joint="curve")
    return mask


def _pattern_shapes(individual: Individual) -> list[np.ndarray]:
    """Polygons of the second colour in thing coordinates; the caller clips them to the body."""
    turn = math.radians(individual.angle)
    along = np.array([math.cos(turn), math.sin(turn)])
    across = np.array([-along[1], along[0]])

    def band(low: float, high: float) -> np.ndarray:
        return np.array(
            [along * -2 + across * low, along * 2 + across * low,
             along * 2 + across * high, along * -2 + across * high]
        )  # fmt: skip

    if individual.pattern == "two_tone":
        return [band(0.2, 2.0)]
    if individual.pattern == "stripes":
        step = 2.0 / individual.count
        starts = np.arange(-individual.count, individual.count + 1) * step
        return [band(s - 0.21 * step, s + 0.21 * step) for s in starts]
    if individual.pattern == "dots":
        step = 1.7 / individual.count
        radius = 0.30 * step
        circle = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        ring = np.stack([np.cos(circle), np.sin(circle)], axis=1) * radius
        cells = range(-individual.count - 1, individual.count + 2)
        return [
            ring + along * (i + 0.5 * (j % 2)) * step + across * j * step
            for i in cells
            for j in cells
        ]
    return []


def _paint_body(
    image: Image.Image, *, individual: Individual, mask: Image.Image, pose: Pose, light: float
) -> None:
    """Fill the body with its colour, its pattern and a soft shade on one side."""
    side = image.width
    base = tuple(
        int(np.clip((c + t) * light, 0, 255))
        for c, t in zip(COLOURS[individual.colour], individual.tint, strict=True)
    )
    image.paste(base, (0, 0), mask)
    shapes = _pattern_shapes(individual)
    if shapes:
        pattern = Image.new("L", (side, side), 0)
        draw = ImageDraw.Draw(pattern)
        for points in shapes:
            draw.polygon(_transform(points, pose=pose, side=side), fill=255)
        second = tuple(int(c * light) for c in TRAIT_COLOURS[individual.second])
        image.paste(second, (0, 0), ImageChops.darker(pattern, mask))
    shift = int(0.10 * pose.scale * side)
    inner = ImageChops.darker(mask, ImageChops.offset(mask, -shift, -shift))
    shade = ImageChops.subtract(mask, inner).point([v * 40 // 255 for v in range(256)])
    image.paste((20, 16, 40), (0, 0), shade)


def _paint_details(
    image: Image.Image, *, parts: Iterable[Part], individual: Individual, pose: Pose, light: float
) -> None:
    draw = ImageDraw.Draw(image)
    line = max(1, round(image.width * 0.006))
    for part in parts:
        corners = _transform(part.points, pose=pose, side=image.width)
        colour = _role_colour(part.role, individual=individual)
        draw.polygon(corners, fill=tuple(int(c * light) for c in colour))
        if part.outlined:
            draw.line([*corners, *corners[:2]], fill=OUTLINE, width=2 * line, joint="curve")


def _role_colour(role: str, *, individual: Individual) -> Colour:
    if role in SHADES:
        red, green, blue = (int(c * SHADES[role]) for c in COLOURS[individual.colour])
        return red, green, blue
    return ROLES[role]


def render(scene: Scene, *, size: int) -> tuple[Image.Image, Image.Image]:
    """The image (RGB) and the mask of the thing (L), both `size` x `size` px."""
    side = size * OVERSAMPLING
    individual, pose = scene.individual, scene.pose
    image, light = draw_place(scene.place, backdrop=scene.backdrop, side=side)
    groups = thing_parts(individual.thing, aspect=individual.aspect)
    front = list(groups.front)
    if individual.face:
        front += face_parts(FACE_ANCHORS[individual.thing], aspect=individual.aspect)
    everything = [*groups.back, *groups.body, *groups.front]
    outline = max(1, round(side * 0.010))
    _paint_shadow(image, pose=pose, light=light)
    whole = _mask(everything, pose=pose, side=side, outline=outline)
    image.paste(OUTLINE, (0, 0), whole)
    _paint_details(image, parts=groups.back, individual=individual, pose=pose, light=light)
    body_edge = _mask(groups.body, pose=pose, side=side, outline=outline)
    image.paste(_role_colour("edge", individual=individual), (0, 0), body_edge)
    body = _mask(groups.body, pose=pose, side=side)
    _paint_body(image, individual=individual, mask=body, pose=pose, light=light)
    _paint_details(image, parts=front, individual=individual, pose=pose, light=light)
    box = (size, size)
    return (
        image.resize(box, Image.Resampling.BOX),
        whole.resize(box, Image.Resampling.BOX),
    )


def _paint_shadow(image: Image.Image, *, pose: Pose, light: float) -> None:
    """Paint a flat shadow under the thing."""
    side = image.width
    alpha = Image.new("L", (side, side), 0)
    centre, foot, width = pose.x * side, (pose.y + pose.scale * 0.96) * side, pose.scale * side
    box = (centre - width * 0.85, foot - width * 0.12, centre + width * 0.85, foot + width * 0.12)
    ImageDraw.Draw(alpha).ellipse(box, fill=int(90 * light))
    image.paste((20, 18, 30), (0, 0), alpha)
