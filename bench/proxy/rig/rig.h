/* rig.h: what the canned model server (mock.c) and the load client (client.c) share: the clock, the
 * log-linear histogram, the bytes of the canned answers, and the header scan.
 *
 * Both programs have one thread and static buffers; nothing here is meant to be called from two threads. */
#ifndef RIG_H
#define RIG_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EVENTS 64          /* SSE events of one stream: role, 62 of content, finish */
#define EVENT_MAX 512      /* an upper bound on the bytes of one framed event */
#define STAMP_DIGITS 19    /* CLOCK_MONOTONIC in ns fits for 300 years */
#define STAMP_MARK "\"fp_" /* precedes "NN_" (index) and the stamp in every event */
#define JSON_BODY_LEN 1600 /* with its head 1.7 KiB on the wire */

static inline int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* wait_until sleeps on the epoll set until the CLOCK_MONOTONIC instant due (0: for ever), to the nanosecond. glibc has
 * no wrapper for the call before 2.35, so it is made by number. */
static inline int wait_until(int ep, struct epoll_event *ev, int max, int64_t due) {
  struct timespec ts = {0, 0};
  if (due) {
    int64_t left = due - now_ns();
    if (left < 0) left = 0;
    ts.tv_sec = left / 1000000000;
    ts.tv_nsec = left % 1000000000;
  }
  return (int)syscall(SYS_epoll_pwait2, ep, ev, max, due ? &ts : NULL, NULL, 0);
}

/* json_body renders the canned completion, exactly JSON_BODY_LEN bytes, the same in both programs so that the client can
 * compare every byte. */
static inline void json_body(char *out) {
  static const char head[] =
      "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1750000000,\"model\":\"bench\","
      "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"";
  static const char tail[] =
      "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
      "\"usage\":{\"prompt_tokens\":230,\"completion_tokens\":310,\"total_tokens\":540},"
      "\"system_fingerprint\":\"fp_bench\"}";
  static const char words[] = "the reservoir fills and the spillway carries what the dam cannot hold ";
  size_t h = sizeof head - 1, t = sizeof tail - 1;
  memcpy(out, head, h);
  for (size_t i = h; i < JSON_BODY_LEN - t; i++) out[i] = words[(i - h) % (sizeof words - 1)];
  memcpy(out + JSON_BODY_LEN - t, tail, t);
}

/* header finds a header's value between p and end (the end of the head), by its lower-case name; NULL when absent. */
static inline const char *header(const char *p, const char *end, const char *name, size_t n) {
  while (p < end) {
    const char *nl = memchr(p, '\n', (size_t)(end - p));
    if (!nl) return NULL;
    p = nl + 1;
    if ((size_t)(end - p) > n && p[n] == ':' && strncasecmp(p, name, n) == 0) {
      for (p += n + 1; p < end && *p == ' ';) p++;
      return p;
    }
  }
  return NULL;
}
#define HEADER(p, end, name) header((p), (end), (name), sizeof(name) - 1)

/* A histogram of nanoseconds: 64 linear buckets in every power of two, so a bucket is at most 1.6 % wide and its middle,
 * which hist_at reports, at most 0.8 % off. */
#define HIST_SUB 64
#define HIST_BUCKETS (HIST_SUB * 40)
typedef struct {
  uint64_t n, bucket[HIST_BUCKETS];
  int64_t max;
  double sum;
} hist;

static inline void hist_add(hist *h, int64_t v) {
  if (v < 0) v = 0;
  int shift = v < HIST_SUB ? 0 : 63 - __builtin_clzll((unsigned long long)v) - 6;
  size_t i = v < HIST_SUB ? (size_t)v : (size_t)(shift + 1) * HIST_SUB + (size_t)((v >> shift) - HIST_SUB);
  if (i >= HIST_BUCKETS) i = HIST_BUCKETS - 1;
  h->bucket[i]++;
  h->n++;
  h->sum += (double)v;
  if (v > h->max) h->max = v;
}

/* hist_at is the value below which the share q of the samples lies, 0 without samples. */
static inline double hist_at(const hist *h, double q) {
  uint64_t want = (uint64_t)(q * (double)h->n), seen = 0;
  if (want >= h->n) want = h->n ? h->n - 1 : 0;
  for (size_t i = 0; i < HIST_BUCKETS; i++) {
    seen += h->bucket[i];
    if (seen <= want) continue;
    if (i < HIST_SUB) return (double)i;
    int shift = (int)(i / HIST_SUB) - 1;
    return ((double)(HIST_SUB + i % HIST_SUB) + 0.5) * (double)(1LL << shift);
  }
  return 0;
}

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

#endif
