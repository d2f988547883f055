#!/usr/bin/env node
/**
 * The command `multifd`. Its version is told at once; everything else is in program.ts.
 *
 * Nothing is loaded that the command line at hand does not need: here, there, and in each command, whose engine comes
 * when its options are right.
 */
import fs from 'node:fs';
import path from 'node:path';
import { packageFolder } from './package-folder.js';

const { version } = JSON.parse(fs.readFileSync(path.join(packageFolder(), 'package.json'), 'utf8')) as {
  version: string;
};
const args = process.argv.slice(2);

if (args.length === 1 && ['-V', '--version'].includes(args[0])) {
  process.stdout.on('error', () => {});
  console.log(version);
} else {
  const { runProgram } = await import('./program.js');
  await runProgram(version, args);
}
