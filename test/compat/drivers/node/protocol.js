// The arguments and the output of the Node.js drivers. The package documentation of
// test/compat describes them.
"use strict";

// The token of the last credential of a chain. It shows that the credentials before it
// returned no token.
const fixedToken = "fell-through";

const request = Object.fromEntries(
  process.argv.slice(2).map((argument) => {
    const at = argument.indexOf("=");
    return [argument.slice(0, at), argument.slice(at + 1)];
  })
);

const print = (line) => process.stdout.write(JSON.stringify(line) + "\n");

// run creates the credential once, calls ask as often as requested, and prints one line for
// each result. ask returns {token, expires_on in seconds}.
async function run(make, ask) {
  const credential = make(request);
  for (let n = 0; n < Number(request.calls || 1); n++) {
    if (n > 0) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * Number(request.pause || 0)));
    }
    const began = performance.now();
    let line;
    try {
      line = await ask(await credential, request);
    } catch (err) {
      line = { error: (err.constructor && err.constructor.name) + " " + err.name, message: String(err.message) };
    }
    print({ ...line, ms: performance.now() - began });
  }
  process.exit(0); // some libraries leave timers running
}

module.exports = { run, fixedToken };
