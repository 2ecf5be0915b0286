"""The text that ipu_print_tensor() prints: brackets, separators and number formats of the program's choice."""

from __future__ import annotations

from typing import List, NamedTuple

import torch


class TextForm(NamedTuple):
    """How a tensor becomes text.

    Args:
        threshold: more elements than this are summarised by the first and last ones.
        edge_items: how many of these.
        max_line_width: a row that is longer goes on in the next line.
        digits: significant digits.
        float_format: "auto", "fixed", "scientific" or "none" (as many digits as Python shows).
        separator: between elements; also at the end of a line that goes on.
        open_bracket: begins each dimension.
        close_bracket: ends it.
    """

    threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    float_format: str
    separator: str
    open_bracket: str
    close_bracket: str

    def text(self, tensor: torch.Tensor) -> str:
        """Return the tensor as text: one line per row of its last dimension."""
        return self._of(tensor, 0, tensor.numel() > self.threshold)

    def _of(self, tensor: torch.Tensor, depth: int, is_short: bool) -> str:
        if tensor.dim() == 0:
            return self._number(tensor)
        elements: List[str] = []
        hidden = range(self.edge_items, len(tensor) - self.edge_items) if is_short else range(0)
        for index in range(len(tensor)):
            if index not in hidden:
                elements.append(self._of(tensor[index], depth + 1, is_short))
            elif index == hidden[0]:
                elements.append("...")
        if tensor.dim() == 1:
            return self.open_bracket + self._row(elements, depth) + self.close_bracket
        indent = " " * (depth + 1)
        lines = "\n".join(indent + element for element in elements)
        return f"{self.open_bracket}\n{lines}\n{' ' * depth}{self.close_bracket}"

    def _row(self, elements: List[str], depth: int) -> str:
        indent = "\n" + " " * (depth + 2)
        row, width = "", depth + 1
        for index, element in enumerate(elements):
            if index:
                is_full = width + len(self.separator) + len(element) >= self.max_line_width
                row += self.separator + (indent if is_full else "")
                width = depth + 2 if is_full else width + len(self.separator)
            row += element
            width += len(element)
        return row

    def _number(self, value: torch.Tensor) -> str:
        if not value.is_floating_point():
            return str(value.tolist())
        number = float(value)
        if self.float_format == "none":
            return repr(number)
        is_plain = number == 0 or 1e-4 <= abs(number) < 10**self.digits
        if self.float_format == "scientific" or (self.float_format == "auto" and not is_plain):
            return f"{number:.{max(self.digits - 1, 0)}e}"
        return f"{number:.{max(self.digits - 1, 0)}f}"
