/*
 * What this machine can do without any of us, for limit.ts:
 *
 *     limit sockets CONNECTIONS BYTES prefault|fresh [FILE]   bytes from one process to another
 *     limit zero memcmp|avx2 THREADS BYTES                    zero-page detection over zero memory
 *
 * Prints seconds. Exit code 3: this machine cannot do it. Linux, C11.
 *
 * sockets: a sending and a receiving process, one connection and one thread on each side for each share of the memory.
 * What is waited for is there before the clock starts: source written, connections open, threads waiting.
 *
 *     sending process                 shared page            receiving process
 *     main    forks, waits for all  <---- ready ----+----->  main    accepts, starts its threads
 *     thread  waits for go          ----- begun --->|
 *     thread  write(512 KiB) ... ============ loopback TCP ============> thread  read(512 KiB) into place
 *                                   <---- ended[i] -+------  thread  notes the time of its last byte
 *                                   <---- sums[i] --+------  thread  sums what it has, after the clock
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MAX_THREADS 256
/* A packet of multifd, and so a write of a channel. */
#define PIECE_BYTES 524288
#define PAGE_BYTES 4096
/* zero: one pass is not counted. */
#define PASSES 5
/* Nothing here takes longer than a minute. */
#define LIMIT_S 120
#define EXIT_CANNOT 3

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, errno != 0 ? strerror(errno) : "failed");
    exit(1);
}

/* CLOCK_MONOTONIC is one clock for both processes. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void *map(size_t bytes, int how)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, how | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("mmap");
    return memory;
}

static size_t number(const char *text, size_t most)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || value == 0 || value > most) {
        fprintf(stderr, "limit: given %s, expected 1 to %zu\n", text, most);
        exit(2);
    }
    return (size_t)value;
}

static void spawn(pthread_t *thread, void *(*run)(void *), void *share)
{
    errno = pthread_create(thread, NULL, run, share);
    if (errno != 0) fail("pthread_create");
}

/* ---- sockets ---- */

/* In memory of both processes. */
struct meeting {
    atomic_int ready;
    double ended[MAX_THREADS];
    uint64_t sums[MAX_THREADS];
};

struct share {
    struct meeting *meeting;
    pthread_barrier_t *go;
    int index;
    int fd;
    unsigned char *memory;
    size_t bytes;
    uint64_t sum;
};

/* Of 64-bit words, each with its place, so that pieces at the wrong place show. */
static uint64_t sum_words(const unsigned char *memory, size_t bytes)
{
    const uint64_t *words = (const uint64_t *)memory;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / 8; i++) sum += words[i] * (2 * i + 1);
    return sum;
}

static void fill_random(unsigned char *memory, size_t bytes)
{
    uint64_t *words = (uint64_t *)memory;
    uint64_t state = 0x9e3779b97f4a7c15;
    for (size_t i = 0; i < bytes / 8; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words[i] = state;
    }
}

static void fill_from(const char *file, unsigned char *memory, size_t bytes)
{
    int fd = open(file, O_RDONLY);
    if (fd < 0) fail(file);
    for (size_t have = 0; have < bytes;) {
        errno = 0;
        ssize_t got = read(fd, memory + have, bytes - have);
        /* Too short: nothing read and no error. */
        if (got <= 0) fail(file);
        have += (size_t)got;
    }
    close(fd);
}

static void *send_share(void *argument)
{
    struct share *share = argument;
    atomic_fetch_add(&share->meeting->ready, 1);
    pthread_barrier_wait(share->go);
    for (size_t sent = 0; sent < share->bytes;) {
        size_t left = share->bytes - sent;
        ssize_t done = write(share->fd, share->memory + sent, left < PIECE_BYTES ? left : PIECE_BYTES);
        if (done < 0) fail("write");
        sent += (size_t)done;
    }
    share->sum = sum_words(share->memory, share->bytes);
    return NULL;
}

static void *receive_share(void *argument)
{
    struct share *share = argument;
    atomic_fetch_add(&share->meeting->ready, 1);
    for (size_t have = 0; have < share->bytes;) {
        size_t left = share->bytes - have;
        ssize_t got = read(share->fd, share->memory + have, left < PIECE_BYTES ? left : PIECE_BYTES);
        if (got < 0) fail("read");
        if (got == 0) { errno = ECONNRESET; fail("read"); }
        have += (size_t)got;
    }
    share->meeting->ended[share->index] = now();
    share->meeting->sums[share->index] = sum_words(share->memory, share->bytes);
    return NULL;
}

static void no_delay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0) fail("TCP_NODELAY");
}

static int receive_all(struct meeting *meeting, int listener, int count, size_t bytes, int prefault)
{
    static struct share shares[MAX_THREADS];
    static pthread_t threads[MAX_THREADS];
    unsigned char *memory = map(bytes, MAP_PRIVATE);
    if (prefault) memset(memory, 1, bytes);
    for (int i = 0; i < count; i++) {
        /* The sender connects one after the other, so they come in its order. */
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) fail("accept");
        no_delay(fd);
        size_t part = bytes / (size_t)count;
        shares[i] = (struct share){
            .meeting = meeting, .index = i, .fd = fd, .memory = memory + (size_t)i * part, .bytes = part };
        spawn(&threads[i], receive_share, &shares[i]);
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    return 0;
}

static int sockets(int count, size_t bytes, int prefault, const char *file)
{
    static struct share shares[MAX_THREADS];
    static pthread_t threads[MAX_THREADS];
    struct meeting *meeting = map(sizeof *meeting, MAP_SHARED);
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, count) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0)
        fail("listen");

    pid_t receiver = fork();
    if (receiver < 0) fail("fork");
    if (receiver == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(LIMIT_S);
        exit(receive_all(meeting, listener, count, bytes, prefault));
    }
    close(listener);
    unsigned char *memory = map(bytes, MAP_PRIVATE);
    if (file != NULL) fill_from(file, memory, bytes);
    else fill_random(memory, bytes);
    pthread_barrier_t go;
    pthread_barrier_init(&go, NULL, (unsigned)count + 1);
    for (int i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("connect");
        no_delay(fd);
        size_t part = bytes / (size_t)count;
        shares[i] = (struct share){ .meeting = meeting, .go = &go, .index = i, .fd = fd,
                                    .memory = memory + (size_t)i * part, .bytes = part };
        spawn(&threads[i], send_share, &shares[i]);
    }
    int status;
    while (atomic_load(&meeting->ready) < 2 * count) {
        if (waitpid(receiver, &status, WNOHANG) != 0) { errno = 0; fail("receiver"); }
        usleep(200);
    }
    double begun = now();
    pthread_barrier_wait(&go);
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    if (waitpid(receiver, &status, 0) != receiver || status != 0) { errno = 0; fail("receiver"); }

    double ended = begun;
    for (int i = 0; i < count; i++) {
        if (meeting->sums[i] != shares[i].sum) {
            fprintf(stderr, "limit: share %d: sum differs from the source's\n", i);
            return 1;
        }
        if (meeting->ended[i] > ended) ended = meeting->ended[i];
    }
    printf("%.6f\n", ended - begun);
    return 0;
}

/* ---- zero ---- */

static unsigned char zero_page[PAGE_BYTES];

static int is_zero_memcmp(const unsigned char *page)
{
    return memcmp(page, zero_page, PAGE_BYTES) == 0;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static int is_zero_avx2(const unsigned char *page)
{
    const __m256i *at = (const __m256i *)page;
    const __m256i *end = at + PAGE_BYTES / sizeof *at;
    for (; at < end; at += 4) {
        __m256i all = _mm256_or_si256(_mm256_or_si256(at[0], at[1]), _mm256_or_si256(at[2], at[3]));
        if (!_mm256_testz_si256(all, all)) return 0;
    }
    return 1;
}
#endif

struct scan {
    int (*is_zero)(const unsigned char *page);
    pthread_barrier_t *turn;
    const unsigned char *memory;
    size_t pages;
    size_t found;
};

static void *scan_share(void *argument)
{
    struct scan *scan = argument;
    for (int pass = 0; pass <= PASSES; pass++) {
        pthread_barrier_wait(scan->turn);
        size_t found = 0;
        for (size_t i = 0; i < scan->pages; i++) found += (size_t)scan->is_zero(scan->memory + i * PAGE_BYTES);
        scan->found = found;
        pthread_barrier_wait(scan->turn);
    }
    return NULL;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int zero(const char *kind, int count, size_t bytes)
{
    static struct scan scans[MAX_THREADS];
    static pthread_t threads[MAX_THREADS];
    int (*is_zero)(const unsigned char *) = NULL;
    if (strcmp(kind, "memcmp") == 0) is_zero = is_zero_memcmp;
#if defined(__x86_64__)
    else if (strcmp(kind, "avx2") == 0 && __builtin_cpu_supports("avx2")) is_zero = is_zero_avx2;
#endif
    if (is_zero == NULL) {
        fprintf(stderr, "limit: %s: not on this processor\n", kind);
        return EXIT_CANNOT;
    }
    unsigned char *memory = map(bytes, MAP_PRIVATE);
    /* Written, or every page would be the kernel's one zero page. */
    memset(memory, 1, bytes);
    memset(memory, 0, bytes);
    pthread_barrier_t turn;
    pthread_barrier_init(&turn, NULL, (unsigned)count + 1);
    size_t pages = bytes / PAGE_BYTES / (size_t)count;
    for (int i = 0; i < count; i++) {
        scans[i] = (struct scan){ .is_zero = is_zero, .turn = &turn, .pages = pages,
                                  .memory = memory + (size_t)i * pages * PAGE_BYTES };
        spawn(&threads[i], scan_share, &scans[i]);
    }
    double seconds[PASSES];
    for (int pass = 0; pass <= PASSES; pass++) {
        double begun = now();
        pthread_barrier_wait(&turn);
        pthread_barrier_wait(&turn);
        if (pass > 0) seconds[pass - 1] = now() - begun;
        for (int i = 0; i < count; i++) {
            if (scans[i].found != pages) {
                fprintf(stderr, "limit: %zu pages found zero, expected %zu\n", scans[i].found, pages);
                return 1;
            }
        }
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
    qsort(seconds, PASSES, sizeof *seconds, by_size);
    printf("%.6f\n", seconds[PASSES / 2]);
    return 0;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    alarm(LIMIT_S);
    if ((argc == 5 || argc == 6) && strcmp(argv[1], "sockets") == 0) {
        size_t count = number(argv[2], MAX_THREADS);
        size_t bytes = number(argv[3], SIZE_MAX / 2);
        if (bytes % (8 * count) != 0) return 2;
        return sockets((int)count, bytes, strcmp(argv[4], "prefault") == 0, argc == 6 ? argv[5] : NULL);
    }
    if (argc == 5 && strcmp(argv[1], "zero") == 0) {
        size_t count = number(argv[3], MAX_THREADS);
        size_t bytes = number(argv[4], SIZE_MAX / 2);
        if (bytes % (PAGE_BYTES * count) != 0) return 2;
        return zero(argv[2], (int)count, bytes);
    }
    fprintf(stderr, "usage: limit sockets CONNECTIONS BYTES prefault|fresh [FILE]\n"
                    "       limit zero memcmp|avx2 THREADS BYTES\n");
    return 2;
}
