"""The HTTP API against its own document: schemathesis makes requests of it, good and bad ones, and judges the answers.

Needs TIDEGATE_BIN as `test_gateway` does.
"""

import pathlib
import subprocess
import sys
import unittest

from test_gateway import WithGateway

SCHEMATHESIS = pathlib.Path(sys.executable).with_name("schemathesis")
SECONDS = 20
# They end the login that all requests share, or are no HTTP afterwards.
LEFT_OUT = ("/api/v1/logout", "/ws")
# Rules that a schema cannot say (a private conversation needs somebody else) refuse what it allows.
CHECKS_LEFT_OUT = "positive_data_acceptance"


class HttpApi(WithGateway):
    SETTINGS = ("auth.argon2_memory_kib=64", "auth.argon2_iterations=1")

    @unittest.skipUnless(SCHEMATHESIS.exists(), "schemathesis is not installed beside this Python")
    def test_answers_are_those_of_the_document(self):
        left_out = [word for path in LEFT_OUT for word in ("--exclude-path", path)]
        run = subprocess.run(
            [SCHEMATHESIS, "run", f"http://{self.gateway.http}/openapi.json", "--seed", "7", "--max-examples", "20",
             "--max-time", str(SECONDS), "--header", f"Authorization: Bearer {self.anna['token']}", "--no-color",
             "--exclude-checks", CHECKS_LEFT_OUT, "--warnings", "off", *left_out],
            cwd=self.gateway.folder.name, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=SECONDS * 10, check=False)
        self.assertEqual(run.returncode, 0, run.stdout)
        self.assertIn("Test cases", run.stdout)


if __name__ == "__main__":
    unittest.main()
