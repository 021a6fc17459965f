"""A headless browser over its own debugging pipe: no driver and no library is needed beside it."""
import base64
import fcntl
import json
import os
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Browser:
    """One page in a headless browser. `with Browser(folder) as browser`: its profile lies in the folder."""

    def __init__(self, folder):
        self.folder, self.number, self.buffer, self.events = folder, 0, b"", []

    def __enter__(self):
        read, self.commands = os.pipe()
        self.answers, write = os.pipe()
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]

        def place() -> None:  # the browser reads commands from file 3 and writes answers to file 4
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)
        self.process = subprocess.Popen(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
             f"--user-data-dir={self.folder}", "about:blank"],
            preexec_fn=place, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for end in high:
            os.close(end)
        os.close(read)
        os.close(write)
        self.session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)

    def send(self, method, **params):
        """Call a method of the protocol and return its result; events on the way are kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.answers, 1 << 16)
                assert part, "the browser has ended"
                self.buffer += part
            text, self.buffer = self.buffer.split(b"\0", 1)
            found = json.loads(text)
            if found.get("id") == self.number:
                assert "error" not in found, found["error"]
                return found["result"]
            self.events.append(found)

    def evaluate(self, script):
        """The value of an expression in the page."""
        return self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    def until(self, script, seconds=60):
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"not true in {seconds} s: {script}"
            self.evaluate("new Promise(done => setTimeout(done, 50))")
        return value

    def size(self, width, height):
        """Take the screen for one of this size; narrow ones are phones."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def choose_file(self, selector, path):
        """Give a file to an input of the page."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def screenshot(self, path):
        """The whole page as a PNG."""
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
