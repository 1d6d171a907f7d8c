"""The pictures of docs/pretraining.md: `python docs/pretraining/draw.py` writes NAME.svg beside this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

INK, PALE = "#333333", "#f4f4f4"
COLOURS = {"text": "#3b75af", "audio": "#d9822b", "vision": "#4b9b6e"}
MODALITIES = tuple(COLOURS)
ROWS = (34, 84, 134)
"""Height of the middle of each modality's row."""
WIDTH, HEIGHT = 560, 178


@dataclass
class Picture:
    """Boxes and arrows; x and y are the middle of a box."""

    parts: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, text: str, colour: str = INK, width: float = 92, dashed: bool = False) -> None:
        lines = text.split("\n")
        height = 16 * len(lines) + 12
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<rect x="{x - width / 2}" y="{y - height / 2}" width="{width}" height="{height}" rx="6" '
            f'fill="{PALE}" stroke="{colour}" stroke-width="1.6"{dash}/>'
        )
        for k, line in enumerate(lines):
            self.words(x, y + 16 * (k - (len(lines) - 1) / 2), line, colour)

    def words(self, x: float, y: float, text: str, colour: str = INK, anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x}" y="{y + 4}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>')

    def arrow(self, *points: tuple[float, float], colour: str = INK, dashed: bool = False) -> None:
        path = " ".join(f"{'M' if k == 0 else 'L'}{x},{y}" for k, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6" marker-end="url(#tip)"{dash}/>'
        )

    def svg(self, title: str) -> str:
        tip = f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/>'
        marker = f'<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{tip}</marker>'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
            f'height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" font-size="12">\n'
            f'<title>{escape(title)}</title>\n<defs>{marker}</defs>\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )

    def classifiers(self, x: float = 60) -> None:
        """A modality's features and the classifier on them, a row each."""
        for m, y in zip(MODALITIES, ROWS, strict=True):
            self.box(x, y, m, COLOURS[m], 70)
            self.arrow((x + 35, y), (x + 79, y), colour=COLOURS[m])
            self.box(x + 120, y, "classifier", COLOURS[m], 80)


def plgm() -> Picture:
    p = Picture()
    p.classifiers()
    for m, y in zip(MODALITIES, ROWS, strict=True):
        p.arrow((298, y - 5), (222, y - 5))
        p.arrow((220, y + 6), (298, y + 6), dashed=True)
        p.box(345, y, "label state", COLOURS[m], 90)
        p.arrow((462, 84), (392, y), colour="#9a9a9a")
    p.box(505, 84, "label M\nstarts all", INK, 84)
    p.words(260, ROWS[0] - 15, "teaches")
    p.words(260, ROWS[2] + 21, "its doubts")
    return p


def gt() -> Picture:
    p = Picture()
    p.classifiers()
    for m, y in zip(MODALITIES, ROWS, strict=True):
        p.arrow((298, y), (222, y))
        p.words(260, y - 9, "teaches")
        p.box(365, y, f"annotated {m[0].upper()}", COLOURS[m], 130)
    return p


def none() -> Picture:
    p = Picture()
    for m, y in zip(MODALITIES, ROWS, strict=True):
        p.box(60, y, m, COLOURS[m], 70)
        p.arrow((95, y), (139, y), colour=COLOURS[m])
        p.box(190, y, "fresh encoder", COLOURS[m], 100)
        p.arrow((240, y), (303, 84), colour=COLOURS[m])
    p.box(345, 84, "stage 2", INK, 80)
    p.arrow((458, 84), (387, 84))
    p.words(422, 75, "teaches")
    p.box(505, 84, "label M", INK, 90)
    return p


def ulgm() -> Picture:
    p = Picture()
    for m, y in zip(MODALITIES, ROWS, strict=True):
        p.box(60, y, m, COLOURS[m], 70)
        p.arrow((95, y), (139, y), colour=COLOURS[m])
        p.box(185, y, "feature", COLOURS[m], 88)
        p.arrow((229, y), (289, y), colour=COLOURS[m])
        p.box(345, y, "d to ⊕ and ⊖\nof its stream", COLOURS[m], 108)
        p.arrow((399, y), (446, y), colour=COLOURS[m])
        p.box(500, y, "M, moved", COLOURS[m], 100)
    p.words(265, 168, "nearer to ⊕ than the fusion is: a higher label than M, and the other way round")
    return p


def mug() -> Picture:
    p = Picture()
    p.box(60, 40, "fused x_M", INK, 88)
    p.arrow((104, 40), (146, 40))
    p.box(196, 40, "P_m(x_M)", INK, 96)
    p.words(60, 82, "M, corrupted")
    p.arrow((104, 80), (256, 62))
    p.arrow((244, 40), (269, 46))
    p.box(320, 56, "MUCN", INK, 92)
    p.arrow((366, 50), (426, 40))
    p.words(494, 40, "M again: known,")
    p.words(494, 55, "so MUCN learns from it")
    for k, m in enumerate(MODALITIES):
        p.box(58 + 62 * k, 134, m, COLOURS[m], 54)
    p.arrow((212, 134), (318, 134), (320, 77))
    p.words(262, 125, "x_m, with M")
    p.arrow((348, 76), (420, 116))
    p.box(482, 126, "unimodal label,\nthat helps on\nheld-out clips", INK, 118)
    return p


def cyclic() -> Picture:
    p = Picture()
    p.box(50, 60, "text", COLOURS["text"], 64)
    p.arrow((82, 60), (128, 60), colour=COLOURS["text"])
    p.box(180, 60, "encoding 1", COLOURS["text"], 100)
    p.arrow((230, 50), (306, 40))
    p.box(350, 36, "vision", COLOURS["vision"], 84, dashed=True)
    p.arrow((350, 20), (350, 9), (50, 9), (50, 43), dashed=True)
    p.words(455, 36, "and back: the cycle")
    p.arrow((230, 70), (286, 100))
    p.box(336, 106, "encoding 2", INK, 96)
    p.arrow((384, 106), (452, 106))
    p.box(500, 106, "audio", COLOURS["audio"], 90, dashed=True)
    p.arrow((336, 121), (336, 138))
    p.box(336, 154, "label M", INK, 84)
    return p


def generation() -> Picture:
    p = Picture()
    for k, target in enumerate(MODALITIES):
        x = 8 + 184 * k
        for y, m in zip((40, 84), (m for m in MODALITIES if m != target), strict=True):
            p.box(x + 38, y, m, COLOURS[m], 62)
            p.arrow((x + 69, y), (x + 102, 62), colour=COLOURS[m])
        p.box(x + 136, 62, target, COLOURS[target], 66, dashed=True)
    p.words(280, 136, "each modality's features from the other two; dashed: what is predicted. No label.")
    return p


def masked() -> Picture:
    p = Picture()
    for m, y in zip(MODALITIES, ROWS, strict=True):
        for k, hidden in enumerate((False, m == "audio", m != "audio", False, m == "vision")):
            p.box(34 + 34 * k, y, "?" if hidden else " ", COLOURS[m], 28, dashed=hidden)
        p.words(210, y, m, COLOURS[m], "start")
        p.arrow((252, y), (296, 84), colour=COLOURS[m])
    p.box(350, 84, "cross-modal\ntransformer", INK, 104)
    p.arrow((402, 84), (438, 84))
    p.words(496, 76, "what was hidden:")
    p.words(496, 92, "wordpieces, frames")
    return p


if __name__ == "__main__":
    for make in (plgm, gt, mug, ulgm, cyclic, generation, masked, none):
        name = make.__name__
        (Path(__file__).parent / f"{name}.svg").write_text(make().svg(f"What {name} learns from"), encoding="utf-8")
