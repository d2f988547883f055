import tseslint from 'typescript-eslint';

const SOCKETS = ['net', 'tls', 'dgram', 'http', 'https', 'http2'];
const message = 'Sockets belong to src/transport/.';
const koffi = 'The door to C is src/native/koffi.ts.';

export default tseslint.config(
  { ignores: ['dist/', 'coverage/', '.tap/', 'bench/node_modules/'] },
  ...tseslint.configs.recommendedTypeChecked.map((config) => ({ ...config, files: ['**/*.ts'] })),
  {
    files: ['**/*.ts'],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }],
      '@typescript-eslint/restrict-template-expressions': 'off',
      eqeqeq: 'error',
    },
  },
  {
    // Sockets are the transport's alone: whoever else wants one asks there.
    files: ['src/**/*.ts', 'workers/**/*.ts'],
    ignores: ['src/transport/**'],
    rules: {
      'no-restricted-imports': [
        'error',
        {
          paths: SOCKETS.flatMap((name) => [name, `node:${name}`]).map((name) => ({ name, message })),
        },
      ],
      'no-restricted-syntax': [
        'error',
        { selector: `ImportExpression > Literal[value=/^(node:)?(${SOCKETS.join('|')})$/]`, message },
        { selector: "Literal[value='koffi']", message: koffi },
      ],
    },
  },
  { files: ['src/native/koffi.ts'], rules: { 'no-restricted-syntax': 'off' } },
  {
    // tap's t.test() returns a promise that the parent test already waits for.
    files: ['test/**/*.ts'],
    rules: { '@typescript-eslint/no-floating-promises': 'off', '@typescript-eslint/require-await': 'off' },
  },
);
