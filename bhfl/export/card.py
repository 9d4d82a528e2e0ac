"""The model card that lies beside exported files, and says what they are, where they come from and
how to load them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


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
    calibrated: int | None = None
    """The samples on which an ONNX file's ranges were fixed; None where none were."""


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
    graphs = [file for file in files if file.file.endswith(".onnx")]
    onnx = "\n" + _onnx(graphs[0]) if graphs else ""
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

The model takes inputs as the batches of its training data hold them: what is done to raw data there, such as
scaling pixels and subtracting their mean, is to be done to every input.
{onnx}"""  # noqa: E501


def front_matter(
    title: str, files: Sequence[Exported], measured: str, data: str, task: str | None
) -> str:
    """What the Hugging Face Hub reads of a card, as YAML that stands at its top.

    Args:
        title: The name of the model.
        files: The files, whose accuracies are its results.
        measured: The split that the accuracies were measured on.
        data: The name of the data.
        task: The Hub's word for what the model was trained for, such as ``image-classification``;
            None where it is not known.
    """
    tags = ["bhfl", "federated-learning", "quantization"]
    if any(file.file.endswith(".onnx") for file in files):
        tags.append("onnx")
    found: dict[str, Any] = {"library_name": "bhfl", "tags": tags}
    # one for each group, whatever the number of its files
    accuracies = {file.group: file.accuracy for file in files if file.accuracy is not None}
    results = [
        {"type": "accuracy", "value": value, "name": f"accuracy of {group} ({measured})"}
        for group, value in accuracies.items()
    ]
    # the Hub takes results only of a task that it knows
    if task:
        found["pipeline_tag"] = task
        dataset = {"name": data, "type": data.lower()}
        result = {"task": {"type": task}, "dataset": dataset, "metrics": results}
        found["model-index"] = [{"name": title, "results": [result]}]
    return f"---\n{yaml.safe_dump(found, sort_keys=False)}---\n\n"


def _onnx(file: Exported) -> str:
    ranges = "takes the\nrange of activations from the batch at hand, like the layers in torch."
    if file.calibrated:
        ranges = f"has\nranges of activations that were fixed on {file.calibrated} samples."
    return f"An ONNX file runs under onnxruntime, without bhfl or torch. It {ranges}\n"


def _row(file: Exported) -> str:
    accuracy = "not measured" if file.accuracy is None else f"{100 * file.accuracy:.2f} %"
    share = file.num_bytes / max(file.float_bytes, 1)
    return f"| {file.group} | `{file.file}` | {file.num_bytes:,} | {share:.3f} | {accuracy} |"
