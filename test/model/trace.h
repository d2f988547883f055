/*
 * The traces that the models take with -DTRACE, from file traces.bin: of each its seed, its length, its events, as
 * stepped/thread.ts writes them. Each is searched for by a process of its own, up to the first way to its end. The program names
 * those that were not accepted, and how far each came.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define END_OF_TRACE (-1)
/* For one of them. */
#define TRACE_SECONDS 20

static int *trace_events;
static int trace_seed, trace_length, trace_reached;

static void trace_not_accepted(void)
{
	printf("seed %d: no way beyond event %d of %d\n", trace_seed, trace_reached, trace_length);
	fflush(stdout);
	_exit(1);
}

static void trace_too_long(int number)
{
	(void) number;
	trace_not_accepted();
}

/* Returns in a process for each trace. */
static void trace_begin(void)
{
	FILE *file = fopen("traces.bin", "rb");
	int *words = NULL;
	int accepted = 0;
	long count, at;

	if (file == NULL || fseek(file, 0, SEEK_END) != 0)
		exit(1);
	count = ftell(file) / (long) sizeof(int);
	rewind(file);
	words = malloc((count + 1) * sizeof(int));
	if (words == NULL || fread(words, sizeof(int), count, file) != (size_t) count)
		exit(1);
	fclose(file);
	for (at = 0; at < count; at += 2 + words[at + 1]) {
		int status;
		pid_t child;

		fflush(stdout);
		child = fork();
		if (child == 0) {
			trace_seed = words[at];
			trace_length = words[at + 1];
			trace_events = words + at + 2;
			atexit(trace_not_accepted);
			signal(SIGALRM, trace_too_long);
			alarm(TRACE_SECONDS);
			return;
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			exit(1);
		if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
			accepted++;
		else
			printf("not accepted: seed %d, status %d\n", words[at], status);
	}
	printf("accepted: %d\n", accepted);
	fflush(stdout);
	_exit(0);
}

static int trace_event(int pos)
{
	if (trace_events == NULL)
		trace_begin();
	if (trace_reached < pos)
		trace_reached = pos;
	return pos < trace_length ? trace_events[pos] : END_OF_TRACE;
}

static void trace_accepted(void)
{
	_exit(0);
}
