// Starts the Cosmos DB emulator on a free port of the loopback, prints the port, ends with its standard input.
//
// Not the package's own command: that one closes every connection after one answer.
import emulator from "@vercel/cosmosdb-server";

const server = emulator.createHttpServer({ keepAlive: true });
// a connection closed by the server just as the client writes to it looks like a fault of the store
server.keepAliveTimeout = 0;
server.requestTimeout = 0;

// It answers 500 where a document to be read is not there; Cosmos DB answers 404.
const missing = "Cannot read properties of undefined";
server.prependListener("request", (request, response) => {
  const end = response.end;
  response.end = (body) => {
    const one = request.method === "GET" && /\/docs\/[^/]+\/?$/.test(request.url);
    if (one && response.statusCode === 500 && body.includes(missing)) {
      response.statusCode = 404;
      body = JSON.stringify({ code: "NotFound", message: "there is no such document" });
    }
    return end.call(response, body);
  };
});
server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(server.address().port);
});

// however the tests end, the pipe is closed, and the emulator goes with it
process.stdin.on("end", () => process.exit(0));
process.stdin.resume();
