// Copies a tree of plain files with the least work that keeps modes and times and would notice
// anything else: nine system calls for a small file, one thread for each processor. It is a
// yardstick for race.py, not a copier: it exits at the first error and at the first attribute.
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { MAX = 1 << 20 };
static int from, to;     // The two roots.
static char *queue[MAX]; // Directories to copy, last in, first out.
static int queued, busy; // How many are in the queue, how many are being copied.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static int must(int result, const char *context) {
    if (result < 0) err(1, "%s", context);
    return result;
}

static void push(char *directory) {
    pthread_mutex_lock(&lock);
    if (queued == MAX) errx(1, "too many directories");
    queue[queued++] = directory;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void set_times(int file, const struct stat *source) {
    struct timespec times[2] = {source->st_atim, source->st_mtim};
    must(futimens(file, times), "futimens");
}

static void copy_file(int source, int destination, const char *name) {
    struct stat before, after;
    char attributes[512];
    int in = must(openat(source, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), name);
    must(fstat(in, &before), name);
    if (flistxattr(in, attributes, sizeof attributes) > 0) errx(1, "%s has attributes", name);
    int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int out = must(openat(destination, name, flags, before.st_mode & 07777), name);
    off64_t read = 0, written = 0;
    while (read < before.st_size)
        if (copy_file_range(in, &read, out, &written, before.st_size - read, 0) <= 0)
            err(1, "%s", name);
    must(fstat(in, &after), name); // Has the source changed since?
    if (after.st_mtim.tv_nsec != before.st_mtim.tv_nsec) errx(1, "%s changed", name);
    set_times(out, &before);
    must(close(out), name);
    close(in);
}

static void copy_directory(const char *path) {
    int source = must(openat(from, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), path);
    int destination = must(openat(to, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), path);
    struct stat stat;
    must(fstat(source, &stat), path);
    DIR *listing = fdopendir(must(dup(source), path));
    for (struct dirent *entry; (entry = readdir(listing));) {
        const char *name = entry->d_name;
        if (!strcmp(name, ".") || !strcmp(name, "..")) continue;
        if (entry->d_type == DT_DIR) {
            char *child;
            must(mkdirat(destination, name, 0700), name);
            must(asprintf(&child, "%s/%s", path, name), name);
            push(child);
        } else if (entry->d_type == DT_LNK) {
            char target[4096];
            int length = must(readlinkat(source, name, target, sizeof target - 1), name);
            target[length] = 0;
            must(symlinkat(target, destination, name), name);
        } else {
            copy_file(source, destination, name);
        }
    }
    closedir(listing);
    must(fchmod(destination, stat.st_mode & 07777), path);
    set_times(destination, &stat);
    close(source);
    close(destination);
}

static void *work(void *unused) {
    unshare(CLONE_FILES); // Gives each thread a table of descriptors of its own, if allowed.
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!queued && busy) pthread_cond_wait(&changed, &lock);
        if (!queued) break;
        char *directory = queue[--queued];
        busy++;
        pthread_mutex_unlock(&lock);
        copy_directory(directory);
        free(directory);
        pthread_mutex_lock(&lock);
        busy--;
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 3) errx(2, "usage: floor SRC DST");
    umask(0);
    must(mkdir(argv[2], 0700), argv[2]);
    from = must(open(argv[1], O_RDONLY | O_DIRECTORY), argv[1]);
    to = must(open(argv[2], O_RDONLY | O_DIRECTORY), argv[2]);
    push(strdup("."));
    cpu_set_t processors;
    must(sched_getaffinity(0, sizeof processors, &processors), "sched_getaffinity");
    int threads = CPU_COUNT(&processors);
    pthread_t thread[threads];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], 0, work, 0)) errx(1, "cannot start a thread");
    for (int i = 0; i < threads; i++) pthread_join(thread[i], 0);
}
