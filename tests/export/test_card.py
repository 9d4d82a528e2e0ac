import yaml

from bhfl.export.card import Exported, front_matter, model_card


def test_a_card_holds_what_it_is_given():
    files = [
        Exported("int4", "int4.safetensors", 1500, 10_000, 0.9125),
        Exported("int8", "int8.onnx", 2600, 10_000, None),
    ]
    card = model_card("a net", files, "test split", {"Rounds": "3"}, "a: 1\n", "load()\n")
    assert card.startswith("# a net\n")
    assert "| int4 | `int4.safetensors` | 1,500 | 0.150 | 91.25 % |\n" in card
    assert "| int8 | `int8.onnx` | 2,600 | 0.260 | not measured |\n" in card
    assert "- Rounds: 3\n" in card
    assert "```python\nload()\n```" in card
    assert "onnxruntime" in card
    assert "onnxruntime" not in model_card("a net", files[:1], "test split", {}, "", "")


def test_the_hub_reads_what_it_is_and_how_well_it_does():
    files = [
        Exported("int8", "int8.safetensors", 10, 40, 0.5),
        Exported("int8", "int8.onnx", 12, 40, 0.5, 256),
        Exported("float32", "float32.safetensors", 40, 40, None),
    ]
    text = front_matter("a model", files, "test split", "Digits", "image-classification")
    _, head, rest = text.split("---\n")
    found = yaml.safe_load(head)
    assert rest == "\n"
    assert found["library_name"] == "bhfl"
    assert found["tags"] == ["bhfl", "federated-learning", "quantization", "onnx"]
    assert found["pipeline_tag"] == "image-classification"
    (model,) = found["model-index"]
    assert model["name"] == "a model"
    (result,) = model["results"]
    assert result["dataset"] == {"name": "Digits", "type": "digits"}
    assert result["metrics"] == [
        {"type": "accuracy", "value": 0.5, "name": "accuracy of int8 (test split)"}
    ]
    unknown = front_matter("a model", files, "test split", "Waves", None)
    assert yaml.safe_load(unknown.split("---\n")[1]).keys() == {"library_name", "tags"}


def test_a_card_says_what_is_done_to_inputs():
    text = model_card("a", [], "test split", {}, "", "")
    assert "inputs as the batches of its training data hold them" in text


def test_a_card_says_how_an_onnx_file_has_its_ranges():
    for calibrated, words in ((None, "from the batch at hand"), (256, "fixed on 256 samples")):
        files = [Exported("int8", "int8.onnx", 12, 40, 0.5, calibrated)]
        assert words in model_card("a", files, "test split", {}, "", "")
