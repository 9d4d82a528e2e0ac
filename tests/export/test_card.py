from bhfl.export.card import Exported, model_card


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
