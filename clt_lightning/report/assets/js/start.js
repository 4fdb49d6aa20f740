CLT.start();
