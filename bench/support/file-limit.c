/*
 * What a guest into a file and back costs without any of us, for file-limit.ts: the same peer, the same bytes, and nothing
 * else. No bitmap, no check, no return path, one thread a connection.
 *
 *     file-limit receive FILE CONNECTIONS read|splice   from a source that is told the port: its pages into FILE
 *     file-limit send PORT read|sendfile FILE...        each file as it is over a connection of its own, in this order
 *
 * receive prints the port, and `done` when all connections have ended. send ends when the peer has ended them. Exit code
 * other than 0: it went wrong. Linux, C11.
 *
 *     receive   main stream: read, dropped       channel: header | payload -> buffer -> pwrite, a run of pages at a time
 *                                                         splice: payload -> pipe -> FILE
 *     send      pread of 512 KiB -> buffer -> write     sendfile: 512 KiB of FILE
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_CONNECTIONS 64
#define PACKET_BYTES 524288
#define PAGE_BYTES 4096
#define PAGES (PACKET_BYTES / PAGE_BYTES)
/* src/wire/hello.ts, src/wire/packet.ts. */
#define MAGIC 0x11223344
#define HELLO_BYTES 64
#define NAME_BYTES 256
#define MAX_BLOCKS 64
/* Each block has its own part of the sparse file. */
#define BLOCK_BYTES ((uint64_t)1 << 36)
#define PIPE_BYTES 1048576
#define LIMIT_S 120

struct header {
    uint32_t magic, version, flags, pages_alloc, normal_pages, next_packet_size;
    uint64_t packet_num;
    uint32_t zero_pages, reserved[7];
    char block[NAME_BYTES];
    uint64_t offsets[PAGES];
};

static int file;
/* splice, sendfile: no buffer. */
static int in_kernel;
static int sockets[MAX_CONNECTIONS];
static const char *sources[MAX_CONNECTIONS];
static char names[MAX_BLOCKS][NAME_BYTES];
static int blocks;
static pthread_mutex_t blocks_mutex = PTHREAD_MUTEX_INITIALIZER;

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "file-limit: %s: %s\n", what, errno != 0 ? strerror(errno) : "failed");
    exit(1);
}

static uint64_t block_at(const char *name)
{
    pthread_mutex_lock(&blocks_mutex);
    int i = 0;
    while (i < blocks && memcmp(names[i], name, NAME_BYTES) != 0) i++;
    if (i == MAX_BLOCKS) { errno = 0; fail("too many blocks"); }
    if (i == blocks) memcpy(names[blocks++], name, NAME_BYTES);
    pthread_mutex_unlock(&blocks_mutex);
    return (uint64_t)i * BLOCK_BYTES;
}

/* 0 at the end of the stream before the first byte. */
static int read_all(int fd, void *into, size_t bytes)
{
    for (size_t have = 0; have < bytes;) {
        ssize_t got = read(fd, (char *)into + have, bytes - have);
        if (got == 0 && have == 0) return 0;
        if (got <= 0) fail("read");
        have += (size_t)got;
    }
    return 1;
}

static void write_all(int fd, const void *from, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t count = write(fd, (const char *)from + done, bytes - done);
        if (count < 0) fail("write");
        done += (size_t)count;
    }
}

static void splice_run(int fd, const int *ends, size_t bytes, loff_t at)
{
    while (bytes > 0) {
        ssize_t got = splice(fd, NULL, ends[1], NULL, bytes, 0);
        if (got <= 0) fail("splice from the socket");
        bytes -= (size_t)got;
        while (got > 0) {
            ssize_t put = splice(ends[0], NULL, file, &at, (size_t)got, 0);
            if (put <= 0) fail("splice into the file");
            got -= put;
        }
    }
}

static void receive_pages(int fd, const int *ends, char *buffer, const struct header *header)
{
    uint32_t count = be32toh(header->normal_pages);
    if (count > PAGES) { errno = 0; fail("header"); }
    uint64_t base = block_at(header->block);
    if (!in_kernel && !read_all(fd, buffer, (size_t)count * PAGE_BYTES)) fail("payload");
    for (uint32_t i = 0, run; i < count; i += run) {
        uint64_t offset = be64toh(header->offsets[i]);
        for (run = 1; i + run < count; run++) {
            if (be64toh(header->offsets[i + run]) != offset + (uint64_t)run * PAGE_BYTES) break;
        }
        size_t bytes = (size_t)run * PAGE_BYTES;
        if (in_kernel) splice_run(fd, ends, bytes, (loff_t)(base + offset));
        else if (pwrite(file, buffer + (size_t)i * PAGE_BYTES, bytes, (off_t)(base + offset)) != (ssize_t)bytes)
            fail("pwrite");
    }
}

static void *receive(void *argument)
{
    int fd = *(int *)argument;
    char *buffer = malloc(PACKET_BYTES);
    struct header header;
    int ends[2] = { -1, -1 };
    uint32_t magic;
    if (buffer == NULL) fail("malloc");
    if (recv(fd, &magic, sizeof magic, MSG_PEEK | MSG_WAITALL) != sizeof magic) fail("recv");
    if (be32toh(magic) != MAGIC) {
        while (read(fd, buffer, PACKET_BYTES) > 0) {}
        return NULL;
    }
    if (in_kernel && (pipe(ends) != 0 || fcntl(ends[0], F_SETPIPE_SZ, PIPE_BYTES) < 0)) fail("pipe");
    if (!read_all(fd, buffer, HELLO_BYTES)) fail("hello");
    while (read_all(fd, &header, sizeof header)) {
        if (be32toh(header.normal_pages) > 0) receive_pages(fd, ends, buffer, &header);
    }
    return NULL;
}

static void *send_file(void *argument)
{
    size_t index = (size_t)((int *)argument - sockets);
    int fd = sockets[index];
    char *buffer = malloc(PACKET_BYTES);
    int source = open(sources[index], O_RDONLY);
    ssize_t got;
    if (buffer == NULL || source < 0) fail(sources[index]);
    if (in_kernel) {
        while ((got = sendfile(fd, source, NULL, PACKET_BYTES)) > 0) {}
    } else {
        for (off_t at = 0; (got = pread(source, buffer, PACKET_BYTES, at)) > 0; at += got)
            write_all(fd, buffer, (size_t)got);
    }
    if (got < 0) fail(sources[index]);
    /* The main stream's other direction carries answers: they are not looked at. */
    while (read(fd, buffer, PACKET_BYTES) > 0) {}
    return NULL;
}

static void run(int count, void *(*what)(void *))
{
    pthread_t threads[MAX_CONNECTIONS];
    for (int i = 0; i < count; i++) {
        errno = pthread_create(&threads[i], NULL, what, &sockets[i]);
        if (errno != 0) fail("pthread_create");
    }
    for (int i = 0; i < count; i++) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    signal(SIGPIPE, SIG_IGN);
    alarm(LIMIT_S);
    if (argc == 5 && strcmp(argv[1], "receive") == 0) {
        int count = atoi(argv[3]);
        if (count < 1 || count > MAX_CONNECTIONS) return 2;
        in_kernel = strcmp(argv[4], "splice") == 0;
        file = open(argv[2], O_RDWR | O_CREAT | O_TRUNC, 0600);
        if (file < 0) fail(argv[2]);
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
            listen(listener, count) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0)
            fail("listen");
        printf("%d\n", ntohs(address.sin_port));
        fflush(stdout);
        for (int i = 0; i < count; i++) {
            sockets[i] = accept(listener, NULL, NULL);
            if (sockets[i] < 0) fail("accept");
        }
        run(count, receive);
        if (fsync(file) != 0) fail("fsync");
        printf("done\n");
        return 0;
    }
    if (argc > 4 && argc - 4 <= MAX_CONNECTIONS && strcmp(argv[1], "send") == 0) {
        int on = 1;
        int count = argc - 4;
        address.sin_port = htons((uint16_t)atoi(argv[2]));
        in_kernel = strcmp(argv[3], "sendfile") == 0;
        for (int i = 0; i < count; i++) {
            sources[i] = argv[4 + i];
            sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
            if (sockets[i] < 0 || connect(sockets[i], (struct sockaddr *)&address, sizeof address) != 0 ||
                setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
                fail("connect");
        }
        run(count, send_file);
        return 0;
    }
    fprintf(stderr, "usage: file-limit receive FILE CONNECTIONS read|splice\n"
                    "       file-limit send PORT read|sendfile FILE...\n");
    return 2;
}
