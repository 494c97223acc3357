/* process.h: reads a set of processes from outside: CPU from the kernel's process clocks (nanoseconds, not ticks),
 * resident memory and open files from /proc. */
#ifndef PROCESS_H
#define PROCESS_H

#include "rig.h"

#include <dirent.h>
#include <sys/types.h>

#define MAX_PIDS 64

struct processes {
  pid_t pid[MAX_PIDS];
  int n;
};

static inline void processes_parse(struct processes *s, char *list) {
  for (char *p = strtok(list, ","); p && s->n < MAX_PIDS; p = strtok(NULL, ",")) s->pid[s->n++] = atoi(p);
}

/* processes_cpu is the CPU time of all, in ns; -1 when one is gone. */
static inline int64_t processes_cpu(const struct processes *s) {
  int64_t sum = 0;
  for (int i = 0; i < s->n; i++) {
    clockid_t id;
    struct timespec t;
    if (clock_getcpuclockid(s->pid[i], &id) || clock_gettime(id, &t)) return -1;
    sum += (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
  }
  return sum;
}

/* processes_rss_fast is statm's resident size in bytes: cheap, off by some hundred KiB a process on many cores. */
static inline int64_t processes_rss_fast(const struct processes *s) {
  int64_t sum = 0;
  for (int i = 0; i < s->n; i++) {
    char path[64];
    long long size = 0, pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", s->pid[i]);
    FILE *f = fopen(path, "re");
    if (!f) continue;
    if (fscanf(f, "%lld %lld", &size, &pages) == 2) sum += pages * sysconf(_SC_PAGESIZE);
    fclose(f);
  }
  return sum;
}

/* processes_rss is smaps_rollup's exact resident size in bytes. It walks the page tables: never inside a window. */
static inline int64_t processes_rss(const struct processes *s) {
  int64_t sum = 0;
  for (int i = 0; i < s->n; i++) {
    char path[64], line[256];
    long long kb = 0;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", s->pid[i]);
    FILE *f = fopen(path, "re");
    if (!f) return processes_rss_fast(s);
    while (fgets(line, sizeof line, f))
      if (sscanf(line, "Rss: %lld", &kb) == 1) break;
    fclose(f);
    sum += kb * 1024;
  }
  return sum;
}

/* processes_files is the number of open file descriptors of all. */
static inline long processes_files(const struct processes *s) {
  long n = 0;
  for (int i = 0; i < s->n; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", s->pid[i]);
    DIR *d = opendir(path);
    if (!d) continue;
    while (readdir(d)) n++;
    n -= 2;
    closedir(d);
  }
  return n;
}

#endif
