"""The model card that lies beside exported files, and says what they are, where they come from and
how to load them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exported:
    """One file of a model, and what is known of it."""

    group: str
    """The label of the bit-widths."""
    file: str
    num_bytes: int
    float_bytes: int
    """The bytes of the same model with its tensors in float32."""
    accuracy: float | None
    """The fraction of right answers; None where nobody measured it."""


def model_card(
    title: str,
    files: Sequence[Exported],
    measured: str,
    facts: Mapping[str, str],
    config: str,
    loading: str,
) -> str:
    """A card in Markdown.

    Args:
        title: The heading, which names the model.
        files: The files, each of which gets a row of the table.
        measured: The split that the accuracies were measured on.
        facts: What is known of the training, by name.
        config: The configuration of the run, as YAML.
        loading: Python code that loads the first file.
    """
    rows = "\n".join(map(_row, files))
    listed = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    onnx = "\n" + _ONNX if any(file.file.endswith(".onnx") for file in files) else ""
    return f"""# {title}

One model, trained by bhfl over clients of different bit-widths. Each file is this model
as the clients of one group run it.

| group | file | bytes | of float32 | accuracy ({measured}) |
|---|---|---|---|---|
{rows}

## Training

{listed}

```yaml
{config.strip()}
```

## Loading

```python
{loading.strip()}
```

`restore_(model, file, quantized=False)` gives a plain float model with the same weights, and
`bhfl.export.load_quantized(file)` the integers themselves. For readers in other languages, the head of
`bhfl/quant/packing.py` says how codes of other than 8 bits lie in bytes: in planes, not one behind another.
{onnx}"""  # noqa: E501


_ONNX = """\
An ONNX file runs under onnxruntime, without bhfl or torch. Like the layers in torch it takes the
range of activations from the batch at hand.
"""


def _row(file: Exported) -> str:
    accuracy = "not measured" if file.accuracy is None else f"{100 * file.accuracy:.2f} %"
    share = file.num_bytes / max(file.float_bytes, 1)
    return f"| {file.group} | `{file.file}` | {file.num_bytes:,} | {share:.3f} | {accuracy} |"
