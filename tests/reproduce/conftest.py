import pytest

# Fixtures that run a whole reproduction: what uses one is not part of the default run.
RUNS = {"report", "reports", "folder"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "reproduce" and RUNS & set(item.fixturenames):
            item.add_marker(pytest.mark.reproduction)
