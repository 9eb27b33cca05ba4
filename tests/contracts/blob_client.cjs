// Makes calls with npm's @vercel/blob: each comes as a line of JSON on standard input, its outcome goes to standard output.
const readline = require("node:readline");
const sdk = require("@vercel/blob");
const { Readable } = require("node:stream");

const calls = {
  put: ({ pathname, body, streamed, ...options }) =>
    sdk.put(pathname, streamed ? Readable.from([Buffer.from(body)]) : body, options),
  head: ({ target }) => sdk.head(target),
  list: (options) => sdk.list(options),
  listAll: async ({ prefix, limit }) => {
    const pathnames = [];
    let cursor;
    do {
      const page = await sdk.list({ prefix, limit, cursor });
      pathnames.push(...page.blobs.map((blob) => blob.pathname));
      cursor = page.cursor;
    } while (cursor);
    return pathnames;
  },
  folders: async ({ prefix, limit }) => {
    const found = { blobs: [], folders: [] };
    let cursor;
    do {
      const page = await sdk.list({ prefix, limit, cursor, mode: "folded" });
      found.blobs.push(...page.blobs.map((blob) => blob.pathname));
      found.folders.push(...page.folders);
      cursor = page.cursor;
    } while (cursor);
    return found;
  },
  copy: ({ source, pathname, ...options }) => sdk.copy(source, pathname, options),
  delete: async ({ targets, ...options }) => (await sdk.del(targets, options)) ?? null,
  createFolder: ({ pathname }) => sdk.createFolder(pathname),
};

async function outcome({ call, options, environment }) {
  Object.assign(process.env, environment);
  try {
    return { value: await calls[call](options) };
  } catch (error) {
    const name = Object.keys(sdk).find((key) => sdk[key] === error.constructor) ?? error.constructor.name;
    return { error: name, message: error.message, retryAfter: error.retryAfter ?? null };
  }
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await outcome(JSON.parse(line)))}\n`);
  }
}

main().then(() => process.exit(0));
