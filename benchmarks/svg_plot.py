"""A line chart as SVG, for figures over a quantity that doubles: both axes are logarithmic.

Stands alone: what reads it is a browser.
"""

import math
import xml.sax.saxutils

# Of the drawing, in SVG's user units.
_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 210, 40, 60
# Distinct without colour vision as far as five lines can be (Okabe and Ito), and by their marks.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")


def _text(value):
    return xml.sax.saxutils.escape(str(value))


class _Axis:
    """Maps [low, high] to [start, end], logarithmically."""

    def __init__(self, values, start, end):
        self.low, self.high = min(values), max(values)
        if self.low <= 0:
            raise ValueError("a logarithmic axis needs values above zero")
        if self.low == self.high:
            self.high = self.low * 2
        self._start, self._end = start, end

    def place(self, value):
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self._start + share * (self._end - self._start)


def _decades(axis):
    """Returns 1, 2 and 5 times powers of ten that lie on the axis."""
    ticks = [digit * 10.0 ** power
             for power in range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
             for digit in (1, 2, 5)]
    return [tick for tick in ticks if axis.low <= tick <= axis.high]


def _label(x, y, anchor, text, size=12):
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">'
            f"{_text(text)}</text>")


def _grid(x_axis, y_axis, ticks, x_label, y_label):
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for tick in ticks:
        x = x_axis.place(tick)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(_label(x, bottom + 18, "middle", f"{tick:g}"))
    for tick in _decades(y_axis):
        y = y_axis.place(tick)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_label(_LEFT - 8, y + 4, "end", f"{tick:,g}"))
    parts.append(_label((_LEFT + right) / 2, _HEIGHT - 14, "middle", x_label))
    parts.append(_label(_LEFT - 60, _TOP - 14, "start", y_label))
    return parts


def _line(index, name, points, x_axis, y_axis):
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index % len(_DASHES)]
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"'
             f' stroke-dasharray="{dash}"/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
    x, y = _WIDTH - _RIGHT + 16, _TOP + 10 + 20 * index
    parts.append(f'<path d="M{x} {y}h28" stroke="{colour}" stroke-width="2"'
                 f' stroke-dasharray="{dash}"/>')
    parts.append(_label(x + 34, y + 4, "start", name))
    return parts


def line_chart(title, x_label, y_label, series):
    """Returns the SVG text. `series`: {name: [(x, y), ...]}, all above zero; empty ones are left out.

    Raises ValueError if there is nothing to draw, or a value that has no logarithm.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        raise ValueError("nothing to draw")
    ticks = sorted({x for points in series.values() for x, _ in points})
    x_axis = _Axis(ticks, _LEFT, _WIDTH - _RIGHT)
    y_axis = _Axis([y for points in series.values() for _, y in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
             ' font-family="sans-serif">',
             f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
             _label(_WIDTH / 2, 16, "middle", title, 14)]
    parts += _grid(x_axis, y_axis, ticks, x_label, y_label)
    for index, (name, points) in enumerate(series.items()):
        parts += _line(index, name, points, x_axis, y_axis)
    return "\n".join(parts + ["</svg>"]) + "\n"
