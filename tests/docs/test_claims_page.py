"""The tables of the page about Quantum-PEFT's claims contain the stored results."""


def test_tables_contain_the_stored_results(monkeypatch, request):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    import claims_page

    text = claims_page.PAGE.read_text(encoding="utf-8")
    assert text == claims_page.filled(text)
    assert all(f"% table: {name}\n" in text for name in claims_page.tables())
