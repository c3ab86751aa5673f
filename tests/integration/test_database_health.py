"""A run heeds the database it works on: others at work there, replicas, locks, probes of the job."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rewrap.demo.postgres import EmbeddedPostgres
from tests.support.values import seal_many
from tests.support.workbench import NOTES, Workbench, wait_for
