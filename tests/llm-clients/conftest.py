# SPDX-License-Identifier: Apache-2.0
"""One server in a pod of each Wasm engine, for all tests, which run in a node (see `run`)."""

import sys

import pytest

sys.dont_write_bytecode = True

import pods  # noqa: E402


@pytest.fixture(scope="session", params=pods.HANDLERS)
def server(request):
    pods.compile_module(request.param)
    with pods.Server(f"clients-{request.param}", request.param) as server:
        yield server
        assert server.metric("llm_active_generations") == 0, "something is still computed"
