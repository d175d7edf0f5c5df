#!/usr/bin/env python3
"""Load on a server with OpenAI's API: many clients, each with one request after another.

    scripts/load.py http://127.0.0.1:8080 --clients 1,4,32 --seconds 30 [--key KEY]

Works with any server of that API (llama-server too), and needs nothing but Python. Prompts differ
from request to request. For every number of clients: requests, errors by status, tokens per second
over all clients, and the time to the first token (median and 99th percentile).
"""

import argparse
import http.client
import json
import threading
import time
import urllib.parse

WORDS = ("river stone cloud engine paper garden winter silver market window forest signal bridge "
         "letter mountain island captain harvest lantern mirror").split()


def prompt(client, turn):
    words = [WORDS[(client * 7 + turn * 13 + i * (turn + 3)) % len(WORDS)] for i in range(40)]
    return f"Write a story number {client}-{turn} about: {' '.join(words)}."


class Load:
    def __init__(self, args, clients):
        self.args, self.clients = args, clients
        self.url = urllib.parse.urlparse(args.url)
        self.until = 0.0
        self.lock = threading.Lock()
        self.tokens, self.requests, self.errors, self.first = 0, 0, {}, []

    def ask(self, client, turn):
        body = {
            "messages": [{"role": "user", "content": prompt(client, turn)}],
            "max_tokens": self.args.tokens, "stream": True, "temperature": 0.8,
            "seed": client * 1000 + turn, "ignore_eos": True,
        }
        headers = {"Content-Type": "application/json"}
        if self.args.key:
            headers["Authorization"] = f"Bearer {self.args.key}"
        connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=300)
        start, first, tokens = time.perf_counter(), None, 0
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            response = connection.getresponse()
            if response.status != 200:
                response.read()
                return response.status, None, 0
            for line in response:
                if time.perf_counter() > self.until:
                    break
                # Every token is an event with text, but for those that wait for the rest of a
                # character.
                if line.startswith(b"data: {") and b'"content":"' in line.replace(b'": "', b'":"'):
                    if b'"role"' in line and b'"content":""' in line.replace(b'": "', b'":"'):
                        continue
                    tokens += 1
                    first = first or time.perf_counter() - start
            return 200, first, tokens
        except OSError as error:
            return type(error).__name__, None, tokens
        finally:
            connection.close()

    def work(self, client):
        turn = 0
        while time.perf_counter() < self.until:
            status, first, tokens = self.ask(client, turn)
            turn += 1
            with self.lock:
                self.tokens += tokens
                if status == 200:
                    self.requests += 1
                    if first is not None:
                        self.first.append(first)
                else:
                    self.errors[str(status)] = self.errors.get(str(status), 0) + 1
            if status == 429:
                time.sleep(0.2)

    def run(self):
        start = time.perf_counter()
        self.until = start + self.args.seconds
        threads = [threading.Thread(target=self.work, args=(c,)) for c in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        first = sorted(self.first) or [float("nan")]
        return {
            "clients": self.clients,
            "requests": self.requests,
            "errors": self.errors,
            "tokens_per_second": round(self.tokens / took, 1),
            "first_token_p50": round(first[len(first) // 2], 3),
            "first_token_p99": round(first[min(len(first) - 1, int(len(first) * 0.99))], 3),
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--key", default="")
    args = parser.parse_args()
    for clients in map(int, args.clients.split(",")):
        print(json.dumps(Load(args, clients).run()), flush=True)


main()
