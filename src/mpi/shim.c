/* The calls of MPI that a relay needs, with types that are the same in every MPI.
 *
 * OpenMPI and MPICH have the same functions, but other types and constants. So this file is compiled
 * against the one that is installed. All functions are called from one thread. */

#include <mpi.h>
#include <stdlib.h>

/* Connects to the other ranks. Returns 0 if that is done. */
int pcopy_mpi_start(int *rank, int *size) {
    int provided;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) return 1;
    /* A rank that is lost is an error, and not the end of this process. */
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    return MPI_Comm_rank(MPI_COMM_WORLD, rank) != MPI_SUCCESS
        || MPI_Comm_size(MPI_COMM_WORLD, size) != MPI_SUCCESS;
}

/* Begins to send. The bytes must stay until the request is done. Returns NULL if that fails. */
void *pcopy_mpi_send(const void *bytes, int length, int to, int tag) {
    MPI_Request *request = malloc(sizeof *request);
    if (request == NULL) return NULL;
    if (MPI_Isend(bytes, length, MPI_BYTE, to, tag, MPI_COMM_WORLD, request) != MPI_SUCCESS) {
        free(request);
        return NULL;
    }
    return request;
}

/* Returns 0 if a request is not done, 1 if it is, and 2 if it has failed. It is freed if it is
 * done. */
int pcopy_mpi_test(void *request) {
    int done = 0;
    if (MPI_Test(request, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return 2;
    if (done) free(request);
    return done;
}

/* Looks for a message. Returns NULL if there is none. */
void *pcopy_mpi_look(int *from, int *tag, int *length) {
    int found = 0;
    MPI_Status status;
    MPI_Message *message = malloc(sizeof *message);
    if (message == NULL) return NULL;
    if (MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &found, message, &status)
            != MPI_SUCCESS || !found
        || MPI_Get_count(&status, MPI_BYTE, length) != MPI_SUCCESS) {
        free(message);
        return NULL;
    }
    *from = status.MPI_SOURCE;
    *tag = status.MPI_TAG;
    return message;
}

/* Receives the message that was found. Returns 0 if that is done. */
int pcopy_mpi_receive(void *message, void *bytes, int length) {
    int failed = MPI_Mrecv(bytes, length, MPI_BYTE, message, MPI_STATUS_IGNORE) != MPI_SUCCESS;
    free(message);
    return failed;
}

/* Disconnects. Waits for all other ranks. */
void pcopy_mpi_end(void) { MPI_Finalize(); }
