/* The first process of every pod: it holds the pod's namespaces until it is told to go. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGINT, end);
    signal(SIGTERM, end);
    signal(SIGCHLD, SIG_IGN); /* Where processes are shared, orphans are ours, and the kernel is to bury them. */
    for (;;) {
        pause();
    }
}
