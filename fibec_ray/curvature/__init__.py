"""Second-order information of the loss: Fisher and Gauss-Newton matrices, Kronecker factors, Hessian spectra."""
