/** A QMP server that says what a test wants it to: at its greeting, and to each command. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { parseQmpJson } from '../../src/qmp/json.js';

export const GREETING =
  '{"QMP": {"version": {"qemu": {"major": 99, "minor": 0, "micro": 0}}, "capabilities": ["oob"]}}\n';

export interface Command {
  execute: string;
  arguments: Record<string, unknown>;
  id: number;
}

/** What is said to a command: text as it stands, or what `answer()` makes; undefined says nothing. */
export type Script = (command: Command, socket: net.Socket) => string | undefined;

export function answer({ id }: Command, value: unknown = {}): string {
  return `${JSON.stringify({ return: value, id })}\n`;
}

export function refusal({ id }: Command, desc: string): string {
  return `${JSON.stringify({ id, error: { class: 'GenericError', desc } })}\n`;
}

export interface FakeQmp {
  path: string;
  /** What was asked for. */
  commands: Command[];
  /** Breaks its connections. */
  cut(): void;
  /** The same, and nobody listens any more. */
  end(): void;
}

/** @param greeting empty: it says nothing, as one that is busy */
export async function fakeQmp(t: Test, script: Script = answer, greeting = GREETING): Promise<FakeQmp> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-qmp-'));
  const sockets = new Set<net.Socket>();
  const fake: FakeQmp = {
    path: path.join(folder, 'qmp'),
    commands: [],
    cut: () => {
      for (const socket of sockets) socket.destroy();
    },
    end: () => {
      server.close();
      fake.cut();
    },
  };
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {});
    if (greeting !== '') socket.write(greeting);
    let text = '';
    socket.setEncoding('utf8').on('data', (piece: string) => {
      const lines = (text + piece).split('\n');
      text = lines.pop() as string;
      for (const line of lines) {
        if (socket.destroyed) return;
        const command = parseQmpJson(line) as Command;
        fake.commands.push(command);
        const said = command.execute === 'qmp_capabilities' ? answer(command) : script(command, socket);
        if (said !== undefined) socket.write(said);
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(fake.path, resolve));
  t.teardown(() => {
    fake.end();
    fs.rmSync(folder, { recursive: true, force: true });
  });
  return fake;
}
