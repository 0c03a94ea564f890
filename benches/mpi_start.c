/* Starts MPI and ends it: what mpirun takes for any program. */

#include <mpi.h>

int main(int count, char **arguments) {
    MPI_Init(&count, &arguments);
    MPI_Finalize();
    return 0;
}
