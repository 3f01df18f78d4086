"""The model card, against names that would be markup."""

from builders import bundle_record

from pipeline.reporting import card


def test_render_lets_no_name_become_markup() -> None:
    names = ["<script>alert(1)</script>", "![x](https://example.com/x.png)"]
    record = bundle_record(class_names=names)
    text = card.render(record, {"train": dict.fromkeys(names, 3)}, {"prepare.source": "data/<b>.zip"})
    assert "<" not in text
    assert "](" not in text
    assert "&lt;script>alert(1)&lt;/script>" in text
