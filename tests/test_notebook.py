"""The notebook runs in a real kernel, and shows what its stored outputs show."""

from pathlib import Path
from typing import Any, List

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples/train_convert_draw.ipynb"


def shown(notebook: Any) -> List[Any]:
    """Return the texts and the kinds of pictures that the cells show, in order.

    Numbers in the texts have two digits, or are said to be below a limit, so that rounding does not change them.
    """
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.text if output.output_type == "stream" else sorted(output.data) for output in outputs]


def test_the_notebook_trains_converts_and_draws_as_stored() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(
        notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    assert shown(notebook) == shown(stored)
    texts = "".join(output for output in shown(stored) if isinstance(output, str))
    assert "20 norms: 20 replaced, 9 of them with PN" in texts and "below 1e-4: True" in texts
    assert sum(output == ["image/png", "text/plain"] for output in shown(stored)) == 2
