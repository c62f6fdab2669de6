import pytest

from tests.models.served.server import serving
from vrts.models.served import endpoint


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint, "BACKOFF_S", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as found:
        yield found
